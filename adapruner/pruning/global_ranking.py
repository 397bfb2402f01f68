"""One ranking of score per cost over the whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from adapruner.models.units import UnitGroup
from adapruner.pruning.costs import UnitCosts


def price_of_units(values: Tensor, cost: float, gamma: float, log_multiplier: float) -> Tensor:
    """``[units]`` float64: what removing each parameter (or MAC, byte, ms) of a group's unit costs; the lowest go first."""
    total = values.sum().clamp_min(1e-60)  # a dead group's power must not underflow to 0
    return values / cost / total**gamma * math.exp(log_multiplier)


def remove_globally(
    prices: Mapping[str, Tensor], groups: list[UnitGroup], most: Mapping[str, int], costs: UnitCosts
) -> dict[str, set[int]]:
    """Group name -> removed units: the cheapest that still fit, so that less than one channel is missing at the end.

    Args:
        prices: group name -> ``[units]``; see :func:`price_of_units`.
        groups: those that may lose units.
        most: group name -> how many units may go.
    """
    if not groups:
        return {}
    owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([g.units for g in groups]))
    unit = torch.cat([torch.arange(g.units) for g in groups])
    order = torch.argsort(torch.cat([prices[g.name] for g in groups]), stable=True)
    cost = [costs.per_unit[g.name] for g in groups]
    left = [most[g.name] for g in groups]
    removed: list[set[int]] = [set() for _ in groups]
    smallest, remaining = min(cost), costs.remove
    for index, number in zip(owner[order].tolist(), unit[order].tolist(), strict=True):
        if left[index] > 0 and cost[index] <= remaining:
            removed[index].add(number)
            left[index] -= 1
            remaining -= cost[index]
            if remaining < smallest:
                break
    chosen = {g.name: r for g, r in zip(groups, removed, strict=True)}
    _exchange(chosen, prices, groups, most, costs.per_unit, remaining)
    return chosen


def _exchange(
    removed: dict[str, set[int]],
    prices: Mapping[str, Tensor],
    groups: list[UnitGroup],
    most: Mapping[str, int],
    cost: Mapping[str, float],
    remaining: float,
) -> None:
    """Where all channels that may go are gone and no head fits: one more head goes, and the dearest channels come back."""
    smallest = min(cost[g.name] for g in groups)
    if remaining < smallest:
        return
    fine = [g for g in groups if cost[g.name] == smallest]
    order = {g.name: torch.argsort(prices[g.name], stable=True).tolist() for g in groups}

    def price(g: UnitGroup, rank: int) -> float:
        return float(prices[g.name][order[g.name][rank]])

    while remaining >= smallest:  # what a group has lost are its first in order, so their number says which is next
        able = [g for g in groups if len(removed[g.name]) < most[g.name] and cost[g.name] > remaining]
        if not able:
            return
        gone = min(able, key=lambda g: price(g, len(removed[g.name])))
        removed[gone.name].add(order[gone.name][len(removed[gone.name])])
        remaining -= cost[gone.name]
        while remaining < 0 and (filled := [g for g in fine if removed[g.name] and g is not gone]):
            back = max(filled, key=lambda g: price(g, len(removed[g.name]) - 1))
            removed[back.name].remove(order[back.name][len(removed[back.name]) - 1])
            remaining += cost[back.name]
