"""Plans drawn at random, counting what is left by looking at the tensors, and bias compensation number by number."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan


def random_plan(structure: ModelStructure, seed: int) -> PruningPlan:
    """An irregular plan: every group keeps a random non-empty set of its units."""
    draw = random.Random(seed)
    kept = {g.name: sorted(draw.sample(range(g.units), draw.randint(1, g.units))) for g in structure.groups}
    return plan_of(structure, kept)


def plan_of(structure: ModelStructure, kept: dict[str, list[int]]) -> PruningPlan:
    """A plan with these units; groups that are not named stay whole."""
    kept = {g.name: kept.get(g.name, list(range(g.units))) for g in structure.groups}
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in structure.groups)
    return PruningPlan(
        model={"name": "tiny", "model_type": structure.model_type, "fingerprint": "f00d"},
        kept=kept,
        units={g.name: g.units for g in structure.groups},
        parameters={
            "dense": structure.parameters,
            "pruned": structure.parameters - removed,
            "block_dense": structure.block_parameters,
            "block_pruned": structure.block_parameters - removed,
        },
        budget={"pruned_fraction": removed / structure.block_parameters, "of": "block"},
        recipe={"metric": "random"},
        provenance={"seed": 3},
    )


def mean_inputs(model: Any, structure: ModelStructure, windows: Any, weights: list[float]) -> dict[str, Tensor]:
    """Group name -> mean input of the output projection, one sample and one token at a time; padding does not count."""
    sums = {g.name: torch.zeros(g.channels, dtype=torch.float64) for g in structure.groups}
    seen: dict[str, Tensor] = {}
    tokens = 0.0
    for row, weight in enumerate(weights):
        handles = [
            model.get_submodule(g.output.module).register_forward_pre_hook(lambda _, args, name=g.name: seen.update({name: args[0]}))
            for g in structure.groups
        ]
        with torch.no_grad():
            model(windows.input_ids[row : row + 1], attention_mask=windows.attention_mask[row : row + 1])
        for handle in handles:
            handle.remove()
        for position in windows.attention_mask[row].nonzero().flatten().tolist():
            tokens += weight
            for name, states in seen.items():
                sums[name] += weight * states[0, position].double()
    return {name: total / tokens for name, total in sums.items()}


def compensated_bias(weight: Tensor, bias: Tensor | None, removed: list[int], mean: Tensor) -> list[float]:
    """The bias after compensation, one product at a time."""
    weight, result = weight.detach(), [0.0] * len(weight) if bias is None else bias.tolist()
    for row in range(len(weight)):
        for channel in removed:
            result[row] += float(weight[row, channel]) * float(mean[channel])
    return result


def snapshot(model: Any) -> dict[str, Any]:
    """Everything surgery could change: the very parameters, copies of their values, sizes, and the configuration."""
    return {
        "parameters": {n: (id(p), p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()},
        "sizes": {n: (m.in_features, m.out_features) for n, m in model.named_modules() if hasattr(m, "in_features")},
        "config": model.config.to_dict(),
        "modes": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Bit-identical: the same tensors with the same values."""
    assert {k: v[:2] for k, v in before["parameters"].items()} == {k: v[:2] for k, v in after["parameters"].items()}
    for name, (_, _, value) in before["parameters"].items():
        assert value.equal(after["parameters"][name][2]), name
    for key in ("sizes", "config", "modes", "hooks"):
        assert before[key] == after[key], key
