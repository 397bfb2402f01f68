"""What one unit costs, in whatever a budget counts: parameters, multiply-accumulates, GiB or milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adapruner.errors import ConfigurationError
from adapruner.models.units import ModelStructure

#: How far a plan may be from its budget, as a fraction of what the budget counts.
TOLERANCE = 0.001


@dataclass(frozen=True)
class UnitCosts:
    """A budget made concrete for one model: prices of units, and how much has to go. Made by ``Budget.costs``."""

    per_unit: Mapping[str, float]
    """Group name -> cost of one of its units, above 0."""
    whole: float
    """What the removed fraction is a fraction of."""
    remove: float
    """How much has to go."""
    what: str
    """What is counted, for messages: ``block parameters``, ``multiply-accumulates per token``, ``GiB of weights``."""
    dense: float
    """What the dense model has of it: an absolute target is ``dense - remove``."""
    argument: str = "budget.pruned_fraction"
    """The option that set the target, for messages."""
    asked: float = 0.0
    """Its value."""

    def __post_init__(self) -> None:
        bad = next((name for name, cost in self.per_unit.items() if not 0 < cost < math.inf), None)
        if bad is not None or not 0 < self.whole < math.inf:
            got = self.whole if bad is None else self.per_unit[bad]
            raise ConfigurationError(
                f"costs: expected a positive number for {bad or 'the whole'}, got {got}; measure the model again, or use another budget"
            )

    @property
    def slack(self) -> float:
        """The 0.1 % that a plan may be off, in the units of the costs."""
        return TOLERANCE * self.whole

    @property
    def fraction(self) -> float:
        """The target as a removed fraction of ``whole``, in [0, 1)."""
        return self.remove / self.whole

    def removed_by(self, kept: Mapping[str, list[int]], structure: ModelStructure) -> float:
        """What a choice of units removes."""
        return sum((g.units - len(kept[g.name])) * self.per_unit[g.name] for g in structure.groups)

    def left_by(self, kept: Mapping[str, list[int]], structure: ModelStructure) -> float:
        """What a choice of units leaves of the dense model: MACs per token, GiB, ms, or parameters."""
        return self.dense - self.removed_by(kept, structure)

    def shown(self, removed: float) -> str:
        """A removed amount in the terms of the option that set the target: a fraction, or what is left."""
        if self.argument == "budget.pruned_fraction":
            return f"{removed / self.whole:.4f}"
        left = self.dense - removed
        return str(round(left)) if self.argument == "budget.parameters_left" else f"{left:.6g}"
