"""Makes a global ranking's widths regular: the same number of heads everywhere, FFN widths in hardware's multiples.

What is removed stays as close to the ranking as the constraint allows, and the budget is met again by the FFN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from adapruner.anatomy.units import UnitGroup
from adapruner.pruning.budget import Budget


def price_of_units(values: Tensor, group: UnitGroup, gamma: float, log_head_multiplier: float) -> Tensor:
    """``[units]`` float64: what removing each parameter of a unit costs; the lowest go first."""
    total = values.sum().clamp_min(1e-60)  # a dead group's power must not underflow to 0
    multiplier = math.exp(log_head_multiplier) if group.kind == "attention" else 1.0
    return values / group.parameters_per_unit / total**gamma * multiplier


def make_regular(
    removed: Mapping[str, set[int]],
    prices: Mapping[str, Tensor],
    groups: list[UnitGroup],
    budget: Budget,
    target: int,
    uniform_heads: bool,
    round_to: int,
) -> dict[str, set[int]]:
    """Group name -> removed units, regular, as near to ``target`` parameters as whole steps come.

    Args:
        removed: what the global ranking removes.
        prices: group name -> ``[units]``; see :func:`price_of_units`.
        groups: the groups that may lose units.
    """
    attention, ffn = ([g for g in groups if g.kind == kind] for kind in ("attention", "ffn"))
    counts = {g.name: len(removed[g.name]) for g in groups}
    if uniform_heads and attention:
        mean = round(sum(counts[g.name] for g in attention) / len(attention))
        counts |= {g.name: min(mean, g.units - budget.smallest_width(g.units)) for g in attention}
    for g in ffn:
        width = max(round_to, round((g.units - counts[g.name]) / round_to) * round_to)
        counts[g.name] = g.units - min(width, g.units)
    _meet_target(counts, prices, attention, ffn, budget, target, round_to)
    return {g.name: set(torch.argsort(prices[g.name], stable=True)[: counts[g.name]].tolist()) for g in groups}


def _meet_target(
    counts: dict[str, int],
    prices: Mapping[str, Tensor],
    attention: list[UnitGroup],
    ffn: list[UnitGroup],
    budget: Budget,
    target: int,
    step: int,
) -> None:
    """Moves one step of one layer's FFN at a time, the cheapest first, until another would lead away from the target."""
    ranked = {g.name: torch.sort(prices[g.name]).values.cumsum(0).tolist() for g in ffn}

    def cost(g: UnitGroup, low: int, high: int) -> float:
        """Price of the units that rank from ``low`` to ``high``."""
        below = ranked[g.name][low - 1] if low else 0.0
        return float(ranked[g.name][high - 1] - below)

    while ffn:
        missing = target - sum(counts[g.name] * g.parameters_per_unit for g in [*attention, *ffn])
        down = missing > 0
        size = step * ffn[0].parameters_per_unit
        if abs(missing) <= size / 2:
            return
        if down:
            able = [g for g in ffn if g.units - counts[g.name] - step >= max(step, budget.smallest_width(g.units))]
            best = min(able, key=lambda g: cost(g, counts[g.name], counts[g.name] + step), default=None)
        else:
            able = [g for g in ffn if counts[g.name] >= step]
            best = max(able, key=lambda g: cost(g, counts[g.name] - step, counts[g.name]), default=None)
        if best is None:
            return
        counts[best.name] += step if down else -step
