"""From unit scores to the units that stay, under a budget.

Two ways:

- ``gamma``: one ranking of score per parameter over the whole model. A group's scores are first divided by
  (their sum)^gamma: 0 ranks raw losses, 1 gives groups of one kind nearly the same share. Attention scores are multiplied by
  exp(``log_head_multiplier``).
- ``uniform``: every unprotected layer loses the same number of heads and of FFN channels, so the result is uniform.

``heads: uniform`` makes the number of heads the same in all layers while FFN widths stay irregular (more serving engines take
that), and ``round_to`` makes FFN widths multiples of 8, 64 or 128, which hardware multiplies faster.

Heads are coarse; FFN channels absorb their rounding, so that every method removes the same number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adapruner.anatomy.units import ModelAnatomy, UnitGroup
from adapruner.errors import BudgetError, ConfigurationError
from adapruner.pruning.budget import Budget
from adapruner.pruning.regular_widths import make_regular, price_of_units

#: How far a plan may be from its budget, as a fraction of what the budget counts.
TOLERANCE = 0.002


@dataclass(frozen=True)
class Allocation:
    """How scores of different groups are compared."""

    method: Literal["gamma", "uniform"] = "gamma"
    gamma: float = 0.0
    """0: raw scores, 1: nearly uniform over groups of one kind. Only for ``gamma``."""
    log_head_multiplier: float = 0.0
    """Natural logarithm of a factor on attention scores. Only for ``gamma``."""
    heads: Literal["per_layer", "uniform"] = "per_layer"
    """Whether layers may keep different numbers of attention units. Only for ``gamma``."""
    round_to: int = 1
    """FFN widths become multiples of this; the budget is then met within half such a step. Only for ``gamma``."""

    def __post_init__(self) -> None:
        if self.method not in ("gamma", "uniform"):
            raise ConfigurationError(f"allocation.method: expected 'gamma' or 'uniform', got {self.method!r}; name one of them")
        if self.heads not in ("per_layer", "uniform"):
            raise ConfigurationError(f"allocation.heads: expected 'per_layer' or 'uniform', got {self.heads!r}; name one of them")
        if self.round_to < 1:
            raise ConfigurationError(f"allocation.round_to: expected 1 or more, got {self.round_to}; give 64, or 1 for any width")
        if not (math.isfinite(self.gamma) and math.isfinite(self.log_head_multiplier)):
            raise ConfigurationError(f"allocation: expected finite numbers, got gamma {self.gamma} and {self.log_head_multiplier}; give 0")


def allocate(scores: Mapping[str, Tensor], anatomy: ModelAnatomy, budget: Budget, allocation: Allocation) -> dict[str, list[int]]:
    """Group name -> sorted units that stay.

    Args:
        scores: group name -> ``[units]``, non-negative; the lowest go first.

    Raises:
        BudgetError: if the budget cannot be reached within 0.2 %.
        ConfigurationError: if a score is not finite, or a group has none.
    """
    for group in anatomy.groups:
        values = scores.get(group.name)
        if values is None or len(values) != group.units or not bool(torch.isfinite(values).all()):
            raise ConfigurationError(
                f"scores: expected {group.units} finite values for group {group.name}, got others; choose another metric"
            )
    target = budget.parameters_to_remove(anatomy)
    free = [g for g in anatomy.groups if not budget.is_protected(g.layer, anatomy.layers)]
    remove = _remove_uniformly if allocation.method == "uniform" else _remove_globally
    removed = remove(scores, free, budget, allocation, target)
    if allocation.method == "gamma" and (allocation.heads == "uniform" or allocation.round_to > 1):
        prices = {g.name: price_of_units(scores[g.name].double(), g, allocation.gamma, allocation.log_head_multiplier) for g in free}
        removed = make_regular(removed, prices, free, budget, target, allocation.heads == "uniform", allocation.round_to)
    kept = {g.name: sorted(set(range(g.units)) - removed.get(g.name, set())) for g in anatomy.groups}
    _check_target(kept, anatomy, budget, target, allocation)
    return kept


def _remove_globally(
    scores: Mapping[str, Tensor], groups: list[UnitGroup], budget: Budget, allocation: Allocation, target: int
) -> dict[str, set[int]]:
    if not groups:
        return {}
    prices = torch.cat([price_of_units(scores[g.name].double(), g, allocation.gamma, allocation.log_head_multiplier) for g in groups])
    owner = torch.cat([torch.full((g.units,), i) for i, g in enumerate(groups)]).tolist()
    unit = torch.cat([torch.arange(g.units) for g in groups]).tolist()
    cost = [g.parameters_per_unit for g in groups]
    left = [g.units - budget.smallest_width(g.units) for g in groups]
    removed: list[set[int]] = [set() for _ in groups]
    smallest, remaining = min(cost), target
    for position in torch.argsort(prices, stable=True).tolist():
        index = owner[position]
        if left[index] > 0 and cost[index] <= remaining:
            removed[index].add(unit[position])
            left[index] -= 1
            remaining -= cost[index]
            if remaining < smallest:
                break
    return {g.name: r for g, r in zip(groups, removed, strict=True)}


def _remove_uniformly(
    scores: Mapping[str, Tensor], groups: list[UnitGroup], budget: Budget, allocation: Allocation, target: int
) -> dict[str, set[int]]:
    """Heads get the budget's fraction, rounded; FFN channels of all layers take the rest in equal parts."""
    attention = [g for g in groups if g.kind == "attention"]
    ffn = [g for g in groups if g.kind == "ffn"]
    whole = sum(g.units * g.parameters_per_unit for g in groups)
    fraction = target / whole if whole else 0.0
    heads = {g.name: min(round(g.units * fraction), g.units - budget.smallest_width(g.units)) for g in attention}
    remaining = target - sum(heads[g.name] * g.parameters_per_unit for g in attention)
    per_channel = sum(g.parameters_per_unit for g in ffn)
    channels = round(remaining / per_channel) if per_channel else 0
    counts = heads | {g.name: max(0, min(channels, g.units - budget.smallest_width(g.units))) for g in ffn}
    return {g.name: set(torch.argsort(scores[g.name], stable=True)[: counts[g.name]].tolist()) for g in groups}


def _check_target(kept: Mapping[str, list[int]], anatomy: ModelAnatomy, budget: Budget, target: int, allocation: Allocation) -> None:
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in anatomy.groups)
    whole = anatomy.block_parameters if budget.of == "block" else anatomy.parameters
    channel = max((g.parameters_per_unit for g in anatomy.groups if g.kind == "ffn"), default=0)
    step = allocation.round_to * channel if allocation.round_to > 1 else 0
    if abs(removed - target) > max(TOLERANCE * whole, step / 2):
        raise BudgetError(
            f"budget.pruned_fraction: expected a plan within {TOLERANCE:.1%} of {budget.pruned_fraction}, got {removed / whole:.4f} "
            "as the nearest with these units; choose a fraction near it, or the allocation 'gamma'"
        )
