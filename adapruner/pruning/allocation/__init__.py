"""From unit scores to the units that stay, under a budget: how the budget is shared over layers and groups. One way, one file.

Heads are coarse; FFN channels absorb their rounding, so that every way removes the same number of parameters. A user's own is a class
like these, registered by the same decorator and named in ``allocation.method``:

>>> @register_allocation
... class LastLayersFirst(AllocationMethod):
...     name = "last_first"
...
...     def keep(self, inputs):
...         counts, left = {}, inputs.costs.remove
...         for group in reversed(inputs.groups):
...             counts[group.name] = min(inputs.most[group.name], int(left / inputs.costs.per_unit[group.name]))
...             left -= counts[group.name] * inputs.costs.per_unit[group.name]
...         return inputs.keep_highest(counts)
>>> Allocation("last_first").method
'last_first'
>>> ALLOCATIONS.remove("last_first")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from adapruner.argument_checks import check_fields
from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import TOLERANCE, UnitCosts
from adapruner.pruning.tied_sets import slice_units
from adapruner.registry import Registry


@dataclass(frozen=True)
class Allocation:
    """How the budget is shared over groups.

    >>> Allocation("gamma", gamma=0.5, round_to=64).round_to
    64
    """

    method: str = "gamma"
    """``gamma``: one ranking over the whole model; ``uniform``: every layer loses the same; ``depth``: a share of each layer by its
    place. Layers that the budget protects lose nothing."""
    gamma: float = 0.0
    """0: raw scores, 1: nearly uniform over groups of one kind. Only for ``gamma``."""
    log_head_multiplier: float = 0.0
    """Natural logarithm of a factor on attention scores. Only for ``gamma``."""
    per: Literal["cost", "unit"] = "cost"
    """What scores are ranked by: ``cost``, score per parameter (MAC, byte, ms), so that a head is compared with the channels
    that take as much room; ``unit``, the score itself, as FLAP ranks (arXiv 2312.11983). Only for ``gamma``."""
    heads: Literal["per_layer", "uniform"] = "per_layer"
    """Whether layers may keep different numbers of attention units; more serving engines take ``uniform``, which the method
    ``uniform`` always has."""
    round_to: int | None = None
    """FFN widths of pruned layers become multiples of this, which hardware multiplies faster; where no such plan is within 0.1 % of
    the budget, it is met within half such a step (``uniform``: refused). Null: :func:`usual_multiple`, or the largest half, quarter,
    ... of it that meets the budget; 1: any width."""
    depth_slope: float = 0.0
    """How much more the last layer loses than the middle one, and the first less: a share of the layer for ``depth``, a
    natural logarithm of a factor on scores for ``gamma``. Negative: the first layers lose more."""
    depth_curve: float = 0.0
    """How much more both ends lose than the middle, in the same terms. Negative: the middle loses more."""

    def __post_init__(self) -> None:
        check_fields(self, "allocation.")
        method = ALLOCATIONS.find(self.method, "allocation.method")
        if self.heads not in ("per_layer", "uniform"):
            raise ConfigurationError(f"allocation.heads: expected 'per_layer' or 'uniform', got {self.heads!r}; name one of them")
        if self.per not in ("cost", "unit"):
            raise ConfigurationError(f"allocation.per: expected 'cost' or 'unit', got {self.per!r}; name one of them")
        if self.round_to is not None and self.round_to < 1:
            raise ConfigurationError(f"allocation.round_to: expected 1 or more, got {self.round_to}; give 64, or 1 for any width")
        if not (math.isfinite(self.gamma) and math.isfinite(self.log_head_multiplier)):
            raise ConfigurationError(f"allocation: expected finite numbers, got gamma {self.gamma} and {self.log_head_multiplier}; give 0")
        for name, value in (("depth_slope", self.depth_slope), ("depth_curve", self.depth_curve)):
            if not abs(value) <= 100:
                raise ConfigurationError(f"allocation.{name}: expected a number in [-100, 100], got {value}; give 0 for none")
            if value and name not in method.uses:
                raise ConfigurationError(f"allocation.{name}: expected 0 with method {self.method!r}, got {value}; give method 'depth'")
        if ((self.round_to or 1) > 1 and "round_to" not in method.uses) or (self.heads == "uniform" and "heads" not in method.uses):
            raise ConfigurationError(
                f"allocation: expected neither round_to nor uniform heads with method {self.method!r}, got one; choose another method"
            )

    def profile_at(self, layer: int, layers: int) -> float:
        """How much more a layer loses than others: ``depth_slope * d + depth_curve * (d^2 - 1/3)``.

        ``d`` runs from -1 (first layer) to 1 (last), protected layers included. The profile has mean 0 over depth, so that it
        shifts the budget between layers and does not change it.

        >>> [Allocation(depth_slope=0.3).profile_at(layer, 5) for layer in (0, 2, 4)]
        [-0.3, 0.0, 0.3]
        """
        d = 2.0 * layer / (layers - 1) - 1.0 if layers > 1 else 0.0
        return self.depth_slope * d + self.depth_curve * (d * d - 1.0 / 3.0)


@dataclass(frozen=True)
class AllocationInputs:
    """What an allocation decides by."""

    scores: Mapping[str, Tensor]
    """Group name -> ``[units]``, non-negative; the lowest go first."""
    structure: ModelStructure
    groups: list[UnitGroup]
    """Those that may lose units: all but those of protected layers."""
    most: Mapping[str, int]
    """Group name -> how many of its units may go."""
    costs: UnitCosts
    """Costs of every group's units, and how much has to go."""
    keep_at_least: float
    """Smallest fraction of each group's units that stays."""
    options: Allocation
    round_to: int = 1
    """FFN widths are multiples of this; 1: any width."""

    def of_kind(self, kind: str) -> list[UnitGroup]:
        """The groups of one kind that may lose units."""
        return [g for g in self.groups if g.kind == kind]

    def wider(self, group: UnitGroup) -> int:
        """Units that a group has more than the narrowest of its kind: 0 in a model whose layers are equally wide."""
        return group.units - min(g.units for g in self.of_kind(group.kind))

    def missing(self, counts: Mapping[str, float]) -> float:
        """What has still to go where ``counts`` units of each group are removed; negative where too much went."""
        return self.costs.remove - sum(counts[g.name] * self.costs.per_unit[g.name] for g in self.groups)

    def keep_highest(self, counts: Mapping[str, int], scores: Mapping[str, Tensor] | None = None) -> dict[str, list[int]]:
        """Group name -> sorted units that stay when ``counts`` of the lowest scores go; a group without a count keeps all."""
        ranked = {g.name: torch.argsort((scores or {}).get(g.name, self.scores[g.name]), stable=True) for g in self.structure.groups}
        return {name: sorted(order[counts.get(name, 0) :].tolist()) for name, order in ranked.items()}


class AllocationMethod:
    """A way to share the budget; the base of all of them."""

    name = ""
    """What ``allocation.method`` calls it."""
    uses: frozenset[str] = frozenset()
    """Which of ``depth_slope``, ``depth_curve``, ``heads`` and ``round_to`` it looks at."""
    takes_any_budget = True
    """Whether it meets every budget within its finest step; else one that it misses by more than 0.1 % is refused."""

    def keep(self, inputs: AllocationInputs) -> dict[str, list[int]]:
        """Group name, of all groups -> sorted units that stay."""
        raise NotImplementedError


ALLOCATIONS: Registry[AllocationMethod] = Registry("allocation", __name__, "adapruner.allocations")
register_allocation = ALLOCATIONS.add_class


def allocate(
    scores: Mapping[str, Tensor], structure: ModelStructure, budget: Budget, allocation: Allocation, costs: UnitCosts | None = None
) -> dict[str, list[int]]:
    """Group name -> sorted units that stay.

    Args:
        scores: group name -> ``[units]``, non-negative; the lowest go first.
        costs: as made by ``budget.costs``; None makes them here, which does for parameters.

    Raises:
        BudgetError: if the budget cannot be reached within 0.1 % (or within one unit, where units are coarser than that).
        ConfigurationError: if a score is not finite, or a group has none.
    """
    for group in structure.groups:
        values = scores.get(group.name)
        if values is None or len(values) != group.units or not bool(torch.isfinite(values).all()):
            raise ConfigurationError(
                f"scores: expected {group.units} finite values for group {group.name}, got others; choose another metric"
            )
    slices = slice_units(structure, scores, budget.costs(structure) if costs is None else costs)
    inside, layers = slices.structure, slices.structure.layers
    free = [g for g in inside.groups if not budget.is_protected(g.layer, layers)]
    inputs = AllocationInputs(slices.scores, inside, free, budget.most_removed(inside), slices.costs, budget.keep_at_least, allocation)
    method = ALLOCATIONS.find(allocation.method)
    tried: list[tuple[AllocationInputs, dict[str, list[int]], float]] = []
    for multiple in [allocation.round_to] if allocation.round_to else _multiples(inside, method):
        attempt = replace(inputs, round_to=multiple)
        kept = method.keep(attempt)
        tried.append((attempt, kept, slices.costs.removed_by(kept, inside)))
        if abs(tried[-1][2] - slices.costs.remove) <= slices.costs.slack:
            break
    else:  # none within 0.1 %: widths stay regular where the method may be off by half a step
        tried = tried[:1] if method.takes_any_budget else tried
    inputs, kept, removed = tried[-1]
    _check_target(removed, inputs)
    return slices.units_of(kept)


def usual_multiple(structure: ModelStructure) -> int:
    """What FFN widths are multiples of where nobody says: 64 for a model wider than 1024, 32 for one wider than 512, else 16.

    A GPU multiplies odd widths more slowly than the dense ones, and 4-bit kernels take none but multiples of their group. 1 where that
    would be coarser than a 32nd of the layer, or whole experts go.
    """
    ffn = [g for g in structure.groups if g.kind == "ffn"]
    if not ffn or any(g.expert_units for g in ffn):
        return 1
    hidden = max(g.parameters_per_unit // len(g.tensors) for g in ffn)
    multiple = 64 if hidden > 1024 else 32 if hidden > 512 else 16
    return multiple if min(g.units // g.sets for g in ffn) >= 32 * multiple else 1


def _multiples(structure: ModelStructure, method: AllocationMethod) -> list[int]:
    """The usual multiple, its halves down to 8, then any width."""
    usual = usual_multiple(structure) if "round_to" in method.uses else 1
    return [*(n for n in (64, 32, 16, 8) if n <= usual), 1] if usual > 1 else [1]


def _check_target(removed: float, inputs: AllocationInputs) -> None:
    """Refuses a plan that is off by more than 0.1 %, or by more than the finest step where that is coarser."""
    costs, round_to = inputs.costs, inputs.round_to
    if not ALLOCATIONS.find(inputs.options.method).takes_any_budget:
        step = 0.0
    elif round_to > 1:
        step = round_to * max((costs.per_unit[g.name] for g in inputs.of_kind("ffn")), default=0.0) / 2
    else:
        step = min((costs.per_unit[g.name] for g in inputs.groups), default=0.0)
    if abs(removed - costs.remove) > max(costs.slack, step) * (1 + 1e-9):
        raise BudgetError(
            f"{costs.argument}: expected a plan within {TOLERANCE:.1%} of {costs.asked}, got {costs.shown(removed)} "
            "as the nearest with these units; choose a target near it, or the allocation 'gamma'"
        )
