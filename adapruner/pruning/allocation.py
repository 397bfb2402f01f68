"""From unit scores to the units that stay, under a budget.

Four ways:

- ``gamma``: one ranking of score per parameter (or MAC, byte, millisecond: what the budget counts) over the whole model. A group's
  scores are first divided by (their sum)^gamma: 0 ranks raw losses, 1 gives groups of one kind nearly the same share. Attention
  scores are multiplied by exp(``log_head_multiplier``), a layer's by exp(-profile), so that the profile's high layers lose more.
- ``uniform``: every unprotected layer loses the same number of heads and of FFN channels, so the result is uniform.
- ``depth``: every layer's removed share is a base plus the profile; scores decide within a layer only.
- ``list``: the fractions given for each layer, exactly.

The profile is ``depth_slope * d + depth_curve * (d^2 - 1/3)``, with d from -1 in the first layer to 1 in the last.

``heads: uniform`` makes the number of heads the same in all layers while FFN widths stay irregular (more serving engines take
that), and ``round_to`` makes FFN widths multiples of 8, 64 or 128, which hardware multiplies faster. Protected layers hold for all.

Heads are coarse; FFN channels absorb their rounding, so that every method removes the same number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import TOLERANCE, UnitCosts
from adapruner.pruning.depth_profile import depth_counts, profile_at
from adapruner.pruning.global_ranking import price_of_units, remove_globally
from adapruner.pruning.layer_list import listed_counts
from adapruner.pruning.regular_widths import make_regular
from adapruner.pruning.tied_sets import slice_units
from adapruner.pruning.uniform_widths import uniform_counts

METHODS = ("gamma", "uniform", "depth", "list")


@dataclass(frozen=True)
class Allocation:
    """How the budget is shared over groups."""

    method: Literal["gamma", "uniform", "depth", "list"] = "gamma"
    gamma: float = 0.0
    """0: raw scores, 1: nearly uniform over groups of one kind. Only for ``gamma``."""
    log_head_multiplier: float = 0.0
    """Natural logarithm of a factor on attention scores. Only for ``gamma``."""
    per: Literal["cost", "unit"] = "cost"
    """What scores are ranked by: ``cost``, score per parameter (MAC, byte, ms), so that a head is judged against the channels
    that take as much room; ``unit``, the score itself, as FLAP ranks (arXiv 2312.11983). Only for ``gamma``."""
    heads: Literal["per_layer", "uniform"] = "per_layer"
    """Whether layers may keep different numbers of attention units. ``uniform`` always has the same; not for ``list``."""
    round_to: int = 1
    """FFN widths of pruned layers become multiples of this; where no such plan is within 0.1 % of the budget, it is met within
    half such a step (``uniform``: refused). Not for ``list``."""
    depth_slope: float = 0.0
    """How much more the last layer loses than the middle one, and the first less: a share of the layer for ``depth``, a
    natural logarithm of a factor on scores for ``gamma``. Negative: the first layers lose more."""
    depth_curve: float = 0.0
    """How much more both ends lose than the middle, in the same terms. Negative: the middle loses more."""
    attention: list[float] | None = None
    """Fraction of attention units removed in each layer. Only for ``list``."""
    ffn: list[float] | None = None
    """Fraction of FFN channels removed in each layer. Only for ``list``."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            names = ", ".join(repr(m) for m in METHODS[:-1])
            raise ConfigurationError(f"allocation.method: expected {names} or {METHODS[-1]!r}, got {self.method!r}; name one of them")
        if self.heads not in ("per_layer", "uniform"):
            raise ConfigurationError(f"allocation.heads: expected 'per_layer' or 'uniform', got {self.heads!r}; name one of them")
        if self.per not in ("cost", "unit"):
            raise ConfigurationError(f"allocation.per: expected 'cost' or 'unit', got {self.per!r}; name one of them")
        if self.round_to < 1:
            raise ConfigurationError(f"allocation.round_to: expected 1 or more, got {self.round_to}; give 64, or 1 for any width")
        if not (math.isfinite(self.gamma) and math.isfinite(self.log_head_multiplier)):
            raise ConfigurationError(f"allocation: expected finite numbers, got gamma {self.gamma} and {self.log_head_multiplier}; give 0")
        for name, value in (("depth_slope", self.depth_slope), ("depth_curve", self.depth_curve)):
            if not abs(value) <= 100:
                raise ConfigurationError(f"allocation.{name}: expected a number in [-100, 100], got {value}; give 0 for none")
            if value and self.method not in ("gamma", "depth"):
                raise ConfigurationError(f"allocation.{name}: expected 0 with method {self.method!r}, got {value}; give method 'depth'")
        self._check_lists()

    def _check_lists(self) -> None:
        given = [name for name in ("attention", "ffn") if getattr(self, name) is not None]
        if (self.method == "list") != bool(given):
            raise ConfigurationError(
                f"allocation.method: expected 'list' exactly when attention or ffn lists fractions, got {self.method!r} with "
                f"{' and '.join(given) or 'neither'}; give both or neither"
            )
        for name in given:
            bad = [value for value in getattr(self, name) if not 0.0 <= value <= 1.0]
            if bad:
                raise ConfigurationError(f"allocation.{name}: expected fractions in [0, 1], got {bad[0]}; give 0.2 to remove 20 %")
        if self.method == "list" and (self.round_to > 1 or self.heads == "uniform"):
            raise ConfigurationError(
                "allocation: expected neither round_to nor uniform heads with method 'list', got one; list such widths"
            )


def allocate(
    scores: Mapping[str, Tensor], structure: ModelStructure, budget: Budget, allocation: Allocation, costs: UnitCosts | None = None
) -> dict[str, list[int]]:
    """Group name -> sorted units that stay.

    Args:
        scores: group name -> ``[units]``, non-negative; the lowest go first.
        costs: as made by ``budget.costs``; None makes them here, which does for parameters.

    Raises:
        BudgetError: if the budget cannot be reached within 0.1 % (or within one unit, where units are coarser than that).
        ConfigurationError: if a score is not finite, a group has none, or lists do not fit the model.
    """
    for group in structure.groups:
        values = scores.get(group.name)
        if values is None or len(values) != group.units or not bool(torch.isfinite(values).all()):
            raise ConfigurationError(
                f"scores: expected {group.units} finite values for group {group.name}, got others; choose another metric"
            )
    slices = slice_units(structure, scores, budget.costs(structure) if costs is None else costs)
    return slices.units_of(_allocate(slices.scores, slices.structure, budget, allocation, slices.costs))


def _allocate(
    scores: Mapping[str, Tensor], structure: ModelStructure, budget: Budget, allocation: Allocation, costs: UnitCosts
) -> dict[str, list[int]]:
    most = budget.most_removed(structure)
    free = [g for g in structure.groups if not budget.is_protected(g.layer, structure.layers)]
    if allocation.method == "gamma":
        kept = _keep_by_ranking(scores, structure, free, most, allocation, costs)
    else:
        counts = _count(structure, free, most, budget, allocation, costs, scores)
        kept = {g.name: _keep_highest(scores[g.name], counts.get(g.name, 0)) for g in structure.groups}
    _check_target(costs.removed_by(kept, structure), free, allocation, costs)
    return kept


def _keep_by_ranking(
    scores: Mapping[str, Tensor],
    structure: ModelStructure,
    free: list[UnitGroup],
    most: Mapping[str, int],
    allocation: Allocation,
    costs: UnitCosts,
) -> dict[str, list[int]]:
    prices = {}
    for g in free:
        lean = profile_at(g.layer, structure.layers, allocation.depth_slope, allocation.depth_curve)
        multiplier = (allocation.log_head_multiplier if g.kind == "attention" else 0.0) - lean
        cost = costs.per_unit[g.name] if allocation.per == "cost" else 1.0
        prices[g.name] = price_of_units(scores[g.name].double(), cost, allocation.gamma, multiplier)
    removed = remove_globally(prices, free, most, costs)
    if allocation.heads == "uniform" or allocation.round_to > 1:
        counts = {name: len(units) for name, units in removed.items()}
        counts = make_regular(counts, prices, free, most, costs, allocation.heads == "uniform", allocation.round_to)
        return {g.name: _keep_highest(prices.get(g.name, scores[g.name]), counts.get(g.name, 0)) for g in structure.groups}
    return {g.name: [u for u in range(g.units) if u not in gone] for g in structure.groups for gone in (removed.get(g.name, set()),)}


def _count(
    structure: ModelStructure,
    free: list[UnitGroup],
    most: Mapping[str, int],
    budget: Budget,
    allocation: Allocation,
    costs: UnitCosts,
    scores: Mapping[str, Tensor],
) -> dict[str, int]:
    """Group name -> number of units to remove, where scores do not decide it."""
    if allocation.method == "uniform":
        return uniform_counts(free, most, costs, allocation.round_to)
    if allocation.method == "list":
        return listed_counts(structure, most, costs, allocation.attention, allocation.ffn)

    def profile(layer: int) -> float:
        return profile_at(layer, structure.layers, allocation.depth_slope, allocation.depth_curve)

    uniform = allocation.heads == "uniform"
    counts = depth_counts(free, most, costs, profile, budget.keep_at_least, uniform)
    if allocation.round_to > 1:
        prices = {g.name: price_of_units(scores[g.name].double(), costs.per_unit[g.name], 0.0, 0.0) for g in free}
        counts = make_regular(counts, prices, free, most, costs, uniform, allocation.round_to)
    return counts


def _keep_highest(values: Tensor, removed: int) -> list[int]:
    return sorted(torch.argsort(values, stable=True)[removed:].tolist())


def _check_target(removed: float, free: list[UnitGroup], allocation: Allocation, costs: UnitCosts) -> None:
    """Refuses a plan that is off by more than 0.1 %, or by more than the finest step where that is coarser."""
    channel = max((costs.per_unit[g.name] for g in free if g.kind == "ffn"), default=0.0)
    if allocation.method in ("uniform", "list"):
        step = 0.0
    elif allocation.round_to > 1:
        step = allocation.round_to * channel / 2
    else:
        step = min((costs.per_unit[g.name] for g in free), default=0.0)
    if abs(removed - costs.remove) > max(costs.slack, step) * (1 + 1e-9):
        raise BudgetError(
            f"{costs.argument}: expected a plan within {TOLERANCE:.1%} of {costs.asked}, got {costs.shown(removed)} "
            "as the nearest with these units; choose a target near it, or the allocation 'gamma'"
        )
