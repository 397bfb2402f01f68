"""One ranking of score per parameter (or MAC, byte, millisecond: what the budget counts) over the whole model.

A group's scores are first divided by (their sum)^gamma: 0 ranks raw losses, 1 gives groups of one kind nearly the same share.
Attention scores are multiplied by exp(``log_head_multiplier``), a layer's by exp(-profile), so that the profile's high layers lose more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from adapruner.models.units import UnitGroup
from adapruner.pruning.allocation import Allocation, AllocationInputs, AllocationMethod, register_allocation
from adapruner.pruning.allocation.regular_widths import make_regular
from adapruner.pruning.costs import UnitCosts


@register_allocation
class GlobalRanking(AllocationMethod):
    """The lowest scores per cost go, wherever they are."""

    name = "gamma"
    uses = frozenset({"heads", "round_to", "depth_slope", "depth_curve"})

    def keep(self, inputs: AllocationInputs) -> dict[str, list[int]]:
        options = inputs.options
        priorities = {
            g.name: priorities_in(g, inputs.scores[g.name], options, inputs.costs, inputs.structure.layers) for g in inputs.groups
        }
        removed = remove_globally(priorities, inputs)
        if options.heads == "uniform" or inputs.round_to > 1:
            return inputs.keep_highest(make_regular({name: len(units) for name, units in removed.items()}, priorities, inputs), priorities)
        return {g.name: [u for u in range(g.units) if u not in removed.get(g.name, ())] for g in inputs.structure.groups}


def priorities_in(group: UnitGroup, scores: Tensor, options: Allocation, costs: UnitCosts, layers: int) -> Tensor:
    """``[units]`` float64: what one ranking over the whole model ranks a group's units ``[units]`` by.

    Args:
        layers: of the model.
    """
    log_multiplier = (options.log_head_multiplier if group.kind == "attention" else 0.0) - options.profile_at(group.layer, layers)
    cost = costs.per_unit[group.name] if options.per == "cost" else 1.0
    return priorities_of(scores.double(), cost, options.gamma, log_multiplier)


def priorities_of(values: Tensor, cost: float, gamma: float, log_multiplier: float) -> Tensor:
    """``[units]`` float64: score per cost of a group's units, as they are ranked; the lowest go first."""
    total = values.sum().clamp_min(1e-60)  # a dead group's power must not underflow to 0
    return values / cost / total**gamma * math.exp(log_multiplier)


def remove_globally(priorities: Mapping[str, Tensor], inputs: AllocationInputs) -> dict[str, set[int]]:
    """Group name -> removed units: the lowest that still fit, so that less than one channel is missing at the end.

    Args:
        priorities: group name -> ``[units]``; see :func:`priorities_of`.
    """
    groups, most, per_unit = inputs.groups, inputs.most, inputs.costs.per_unit
    if not groups:
        return {}
    owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([g.units for g in groups]))
    unit = torch.cat([torch.arange(g.units) for g in groups])
    order = torch.argsort(torch.cat([priorities[g.name] for g in groups]), stable=True)
    cost = [per_unit[g.name] for g in groups]
    left = [most[g.name] for g in groups]
    removed: list[set[int]] = [set() for _ in groups]
    smallest, remaining = min(cost), inputs.costs.remove
    for index, number in zip(owner[order].tolist(), unit[order].tolist(), strict=True):
        if left[index] > 0 and cost[index] <= remaining:
            removed[index].add(number)
            left[index] -= 1
            remaining -= cost[index]
            if remaining < smallest:
                break
    chosen = {g.name: r for g, r in zip(groups, removed, strict=True)}
    _exchange(chosen, priorities, groups, most, per_unit, remaining)
    return chosen


def _exchange(
    removed: dict[str, set[int]],
    priorities: Mapping[str, Tensor],
    groups: list[UnitGroup],
    most: Mapping[str, int],
    cost: Mapping[str, float],
    remaining: float,
) -> None:
    """Where all channels that may go are gone and no head fits: one more head goes, and the channels of the highest priority come back."""
    smallest = min(cost[g.name] for g in groups)
    if remaining < smallest:
        return
    fine = [g for g in groups if cost[g.name] == smallest]
    order = {g.name: torch.argsort(priorities[g.name], stable=True).tolist() for g in groups}

    def priority(g: UnitGroup, rank: int) -> float:
        return float(priorities[g.name][order[g.name][rank]])

    while remaining >= smallest:  # what a group has lost are its first in order, so their number says which is next
        able = [g for g in groups if len(removed[g.name]) < most[g.name] and cost[g.name] > remaining]
        if not able:
            return
        gone = min(able, key=lambda g: priority(g, len(removed[g.name])))
        removed[gone.name].add(order[gone.name][len(removed[gone.name])])
        remaining -= cost[gone.name]
        while remaining < 0 and (filled := [g for g in fine if removed[g.name] and g is not gone]):
            back = max(filled, key=lambda g: priority(g, len(removed[g.name]) - 1))
            removed[back.name].remove(order[back.name][len(removed[back.name]) - 1])
            remaining += cost[back.name]
