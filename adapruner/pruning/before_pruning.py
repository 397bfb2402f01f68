"""The units of a model that is about to be pruned or trained: what an export was padded with is no part of it, and goes first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapruner.models.tracing import AttentionUnits, FfnUnits, trace_structure
from adapruner.models.units import ModelStructure, UnitGroup, count_parameters
from adapruner.progress import announce
from adapruner.pruning.plan import MARK, PruningPlan, plan_of_widths
from adapruner.pruning.surgery import prune_model


def trace_without_padding(model: Any, attention_units: AttentionUnits = "kv_group", ffn_units: FfnUnits = "channel") -> ModelStructure:
    """:func:`adapruner.models.tracing.trace_structure` of the model that :func:`remove_padding` leaves."""
    remove_padding(model)
    return trace_structure(model, attention_units, ffn_units)


def trace_for_plan(model: Any, plan: PruningPlan) -> ModelStructure:
    """The structure whose units a plan is about: KV groups, or single query heads; channels, or whole experts.

    Raises:
        PlanError: if it fits none.
        ModelError: as :func:`adapruner.models.tracing.trace_structure`.
    """
    structure = trace_without_padding(model)
    others: list[tuple[AttentionUnits, FfnUnits]] = [("query_head", "channel")]
    if any(group.sets > 1 for group in structure.groups):
        others += [("kv_group", "expert"), ("query_head", "expert")]
    for units in others if plan.units != _unit_counts(structure) else ():
        if plan.units == _unit_counts(other := trace_structure(model, *units)):
            return other
    plan.check(structure)
    return structure


def _unit_counts(structure: ModelStructure) -> dict[str, int]:
    return {group.name: group.units for group in structure.groups}


def remove_padding(model: Any) -> int:
    """Cuts, in place, the units of an export whose every weight is zero; the model computes the same.

    Layers are as wide afterwards as those that were padded, so that what is pruned or trained is the model and not its padding.
    A model that is no export, or has no such unit, stays as it is.

    Args:
        model: a causal LM; adapters of ``peft`` must not be on it yet.

    Returns:
        Number of parameters that went.
    """
    if not isinstance(getattr(model.config, MARK, None), Mapping) or any(p.is_meta for p in model.parameters()):
        return 0
    before, forms = count_parameters(model), list[AttentionUnits](["kv_group", "query_head"])
    for units in forms:
        structure = trace_structure(model, units)
        kept = {group.name: _units_in_use(model, group) for group in structure.groups}
        if any(len(kept[group.name]) < group.units for group in structure.groups):
            prune_model(model, structure, plan_of_widths(structure, kept))
    removed = before - count_parameters(model)
    if removed:
        announce(f"leaves out {removed:,} zeros that the export was padded with")
    return removed


def _units_in_use(model: Any, group: UnitGroup) -> list[int]:
    """All units but those that are zero, equally many of each set and never none."""
    zero = torch.ones(group.channels, dtype=torch.bool)
    for member in group.members:
        module = model.get_submodule(member.module)
        empty = _zero_rows(module.weight, member.dim)
        if member.dim == 0 and module.bias is not None:
            empty &= _zero_rows(module.bias[:, None], 0)
        zero &= empty[member.index]
        if not bool(zero.any()):
            return list(range(group.units))
    unused = zero.view(group.sets, -1, group.channels_per_unit).all(-1)
    count = min(int(unused.sum(1).min()), unused.shape[1] - 1)
    ranked = torch.argsort(unused.long(), dim=1, stable=True)[:, : unused.shape[1] - count]
    return sorted((ranked + torch.arange(group.sets)[:, None] * unused.shape[1]).flatten().tolist())


def _zero_rows(weight: Tensor, dim: int) -> Tensor:
    """``[size along dim]`` bool."""
    return (weight.detach() == 0).all(1 - dim).cpu()
