"""What a refit should find: one least-squares problem per projection, from hooks on the whole model, in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan

CASES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "every head its own": {"num_key_value_heads": 4},
    "biased": {"attention_bias": True, "mlp_bias": True},
}


def plan_for(structure: ModelStructure, keep: float = 0.5, seed: int = 3) -> PruningPlan:
    """Random units; the first layer's attention stays whole."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in structure.groups:
        count = group.units if group.name == "0.attention" or keep == 1 else max(1, int(group.units * keep))
        kept[group.name] = sorted(torch.randperm(group.units, generator=generator)[:count].tolist())
    return PruningPlan(
        model={"name": "tiny", "model_type": "llama", "fingerprint": "f00d"},
        kept=kept,
        units={g.name: g.units for g in structure.groups},
        parameters={"dense": 2, "pruned": 1, "block_dense": 2, "block_pruned": 1},
        budget={"pruned_fraction": 0.5, "of": "block"},
    )


def watch(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """``NAME.in`` and ``NAME.out`` of every decoder layer, o_proj and down_proj, ``[tokens, width]`` float64."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")) or name.split(".")[-1].isdigit():

            def record(_: Any, arguments: Any, keywords: Any, output: Any, name: str = name) -> None:
                seen[f"{name}.in"] = (arguments[0] if arguments else keywords["hidden_states"]).double().flatten(0, 1)
                seen[f"{name}.out"] = (output[0] if isinstance(output, tuple) else output).double().flatten(0, 1)

            handles.append(module.register_forward_hook(record, with_kwargs=True))
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def ridge(inputs: Tensor, targets: Tensor, kept: Tensor, strength: float, ones: Tensor | None = None) -> Tensor:
    """min ||X W' - Y||^2 + lambda ||W' - W||^2 as one least-squares problem, with lambda relative to diag X'X, channel by channel.

    With ``ones``, a further column of X without a penalty, the intercept is the last column of the solution.
    """
    scale = (strength * inputs.square().sum(0)).sqrt()
    rows = torch.cat([inputs, scale.diag()])
    if ones is not None:
        rows = torch.cat([rows, torch.cat([ones, torch.zeros(inputs.shape[1], 1, dtype=torch.float64)])], 1)
    return torch.linalg.lstsq(rows, torch.cat([targets, scale[:, None] * kept.double().T])).solution.T
