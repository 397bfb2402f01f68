"""Zero padding to uniform widths, for engines that know only stock classes.

Every layer gets the width of the widest one of its kind: units that were removed come back, with zeros for weights, so that they
add nothing. The folder loads anywhere and computes the same; it saves only what the widest layer saves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.export.meta_models import dense_on_meta
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import prune_model


def pad_to_uniform(model: Any, structure: ModelStructure, plan: PruningPlan) -> tuple[Any, PruningPlan]:
    """A model with the pruned one's tensors at the padded widths, and the plan that has them.

    Args:
        model: pruned by ``plan``, in the linear form of its family. It is not changed; tensors that are not padded are shared.

    Returns:
        A model to be saved, not run: its buffers are on the meta device.
    """
    wide = padded_plan(structure, plan)
    padded = dense_on_meta(model, structure, linear=True)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for group in structure.groups:
        channels = group.channels_of(plan.kept[group.name])
        for module, dim in group.tensors:
            positions, whole = group.positions(module, channels), padded.get_submodule(module).weight.shape
            state[f"{module}.weight"] = _scatter(state[f"{module}.weight"], positions, dim, whole[dim])
            if dim == 0 and f"{module}.bias" in state:
                state[f"{module}.bias"] = _scatter(state[f"{module}.bias"], positions, 0, whole[0])
        output = padded.get_submodule(group.output.module)
        if plan.output_bias and output.bias is None:
            output.bias = nn.Parameter(state[f"{group.output.module}.bias"])
    padded.load_state_dict(state, strict=True, assign=True)
    padded.tie_weights()
    prune_model(padded, structure, wide)
    padded.generation_config = model.generation_config
    return padded, wide


def padded_plan(structure: ModelStructure, plan: PruningPlan) -> PruningPlan:
    """The plan that keeps, in every layer, as many units of a kind as the widest layer does."""
    widest = {kind: max(len(plan.kept[g.name]) for g in structure.groups if g.kind == kind) for kind in {g.kind for g in structure.groups}}
    return replace(plan, kept={g.name: _widened(g, plan.kept[g.name], widest[g.kind]) for g in structure.groups})


def _widened(group: UnitGroup, kept: list[int], count: int) -> list[int]:
    """The kept units and the first of the others, equally many in each set."""
    length, found = group.units // group.sets, []
    for start in range(0, group.units, length):
        own = [u for u in kept if start <= u < start + length]
        others = [u for u in range(start, start + length) if u not in set(own)]
        found += own + others[: count // group.sets - len(own)]
    return sorted(found)


def _scatter(tensor: Tensor, positions: Tensor, dim: int, size: int) -> Tensor:
    """The dense tensor that has these rows (or columns), and zeros elsewhere."""
    shape = list(tensor.shape)
    shape[dim] = size
    return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device).index_copy_(dim, positions.to(tensor.device), tensor)
