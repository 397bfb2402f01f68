"""Switches units off without touching a weight: zeros, or the mean, at the input of the output projections.

Slower than :func:`adapruner.pruning.surgery.pruned` and obvious: the reference the fast path is tested against, and the
gate (m_u in docs/method.md) that Taylor scores differentiate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import PlanError
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.bias_compensation import check_means
from adapruner.pruning.depth import skipped_layers
from adapruner.pruning.plan import PruningPlan


@contextmanager
def masked(
    model: nn.Module, structure: ModelStructure, plan: PruningPlan, means: Mapping[str, Tensor] | None = None
) -> Iterator[nn.Module]:
    """The dense model with every removed unit's contribution set to zero inside the block; with ``means``, to its mean.

    Args:
        means: group name -> ``[channels]``, as in :func:`adapruner.pruning.surgery.prune_model`.

    Raises:
        PlanError: if the plan was made for a model with other groups, adds no bias for the means, removes hidden channels, or leaves
            fewer experts than a token chooses.
        DataError: if a group that loses units has no finite means of its channels.
    """
    plan.check(structure)
    if means is not None:
        check_means(structure, plan, means)
    if plan.kept_hidden is not None:  # the norms' means run over other channels then, which no mask can do
        raise PlanError("plan: expected all hidden channels to stay in a masked model, got a plan that removes some; prune instead")
    with ExitStack() as hooks:
        hooks.enter_context(skipped_layers(model, plan.removed_layers))
        for group in structure.groups:
            if not plan.keeps_all(group):
                linear = model.get_submodule(group.output.module)
                mask = channel_mask(group, plan.kept[group.name])
                filling = torch.zeros(group.channels) if means is None else means[group.name].cpu().where(mask == 0, 0.0)
                handle = linear.register_forward_pre_hook(_fill_channels(mask, filling))
                hooks.callback(handle.remove)
                for router in _routers(model, group, plan):
                    hooks.enter_context(router.choosing_among(plan.kept[group.name]))
        yield model


def _routers(model: nn.Module, group: UnitGroup, plan: PruningPlan) -> list[Any]:
    """The modules that choose experts, where experts are the units: they may choose among the kept ones only."""
    if not group.expert_units:
        return []
    if len(plan.kept[group.name]) < group.at_least:
        raise PlanError(
            f"plan: expected at least {group.at_least} experts to stay in group {group.name}, as many as a token chooses, "
            f"got {len(plan.kept[group.name])}; prune less"
        )
    return [model.get_submodule(m.module.rpartition(".")[0]) for m in group.members if m.role == "router"]


def channel_mask(group: UnitGroup, kept: list[int]) -> Tensor:
    """``[channels]`` float32: 1 where the channel's unit stays, else 0."""
    mask = torch.zeros(group.channels)
    mask[group.channels_of(kept)] = 1.0
    return mask


def _fill_channels(mask: Tensor, filling: Tensor) -> Any:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        return (states * mask.to(states) + filling.to(states), *arguments[1:])

    return hook
