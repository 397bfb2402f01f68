"""What a budget counts, one file for each unit of cost: parameters, multiply-accumulates, memory, latency.

A unit of cost says what one prunable unit of each group costs and what the dense model costs; a budget makes :class:`UnitCosts` of
it, which allocations work with. A user's own is a class like these, registered by the same decorator and named in ``budget.of``:

>>> @register_cost
... class Channels(CostModel):
...     name, words = "channels", "channels at the output projections"
...
...     def count(self, inputs):
...         per_unit = {g.name: float(g.channels_per_unit) for g in inputs.structure.groups}
...         return Counted(per_unit, whole=float(sum(g.channels for g in inputs.structure.groups)))
>>> "channels" in COSTS
True
>>> COSTS.remove("channels")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from adapruner.errors import ConfigurationError
from adapruner.models.units import ModelStructure
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.costs.sizes import ModelSizes
from adapruner.registry import Registry

#: How far a plan may be from its budget, as a fraction of what the budget counts.
TOLERANCE = 0.001


@dataclass(frozen=True)
class CostInputs:
    """What a unit of cost may look at."""

    structure: ModelStructure
    seq_len: int
    """Tokens per sequence."""
    sizes: ModelSizes | None = None
    """Sizes of the dense model."""
    latency: LatencyTable | None = None
    """Measured on the device."""

    def known_sizes(self, of: str) -> ModelSizes:
        """The sizes, which a budget of ``of`` needs.

        Raises:
            ConfigurationError: if there are none.
        """
        if self.sizes is None:
            raise ConfigurationError(
                f"sizes: expected the dense model's for a budget of {of}, got none; give measure_sizes(model, structure)"
            )
        return self.sizes


class Counted(NamedTuple):
    """The cost of a model's units and of the whole model."""

    per_unit: dict[str, float]
    """Group name -> cost of one of its units, above 0."""
    whole: float
    """What the removed fraction is a fraction of."""
    dense: float | None = None
    """What the dense model has of what the absolute target counts, where that is more than ``whole``."""


class CostModel:
    """A unit of cost; the base of all of them."""

    name = ""
    """What ``budget.of`` calls it."""
    words = ""
    """What is counted, for messages."""
    target: str | None = None
    """The budget's absolute target that is given in this unit, if there is one."""
    in_whole_numbers = False
    """Whether a fraction of it is rounded."""
    needs_length = False
    """Whether it depends on ``budget.seq_len``."""
    timed = False
    """Whether it needs a latency table, measured on the device."""

    def count(self, inputs: CostInputs) -> Counted:
        """The cost of each group's units and of the dense model.

        Raises:
            ConfigurationError: if an input that it needs is missing.
        """
        raise NotImplementedError


COSTS: Registry[CostModel] = Registry("unit of cost", __name__, "adapruner.costs")
register_cost = COSTS.add_class


@dataclass(frozen=True)
class UnitCosts:
    """A budget made concrete for one model: costs of units, and how much has to go. Made by ``Budget.costs``."""

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
