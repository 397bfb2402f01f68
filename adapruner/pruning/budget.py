"""How much is to go."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from adapruner.argument_checks import check_fields
from adapruner.errors import BudgetError, ConfigurationError, is_shortened
from adapruner.models.units import ModelStructure
from adapruner.pruning.costs import COSTS, CostInputs, UnitCosts
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.costs.sizes import ModelSizes
from adapruner.pruning.tied_sets import in_slices


@dataclass(frozen=True)
class Budget:
    """A target for the pruned model's size: a removed fraction, or at most one absolute number in its place.

    >>> Budget(0.3).pruned_fraction
    0.3
    >>> Budget(latency_ms=40).of
    'latency'
    """

    pruned_fraction: float = 0.2
    """Fraction to remove, in [0, 1). An absolute target below replaces it."""
    of: str = "block"
    """What the fraction counts: ``block``, the attention and FFN matrices that units live in; ``all``, every parameter
    of the model, embeddings included; ``macs``, multiply-accumulates per token of the whole model; ``memory``, bytes of
    the whole model's weights; ``latency``, ms of one forward; or a registered unit of cost. An absolute target sets it by itself."""
    protect_first: int = 0
    """Number of first decoder layers that lose nothing."""
    protect_last: int = 0
    """Number of last decoder layers that lose nothing."""
    keep_at_least: float = 0.05
    """Smallest fraction of each group's units that stays, whatever their scores; at least one unit always stays."""
    parameters_left: int | None = None
    """Absolute target: parameters of the whole pruned model."""
    macs_left: float | None = None
    """Absolute target: multiply-accumulates per token of the whole pruned model, the output head included."""
    weight_memory_gib: float | None = None
    """Absolute target: GiB of the whole pruned model's weights, as stored."""
    latency_ms: float | None = None
    """Absolute target: ms of one forward of the pruned model on the device that was measured."""
    seq_len: int = 128
    """Tokens per sequence, for ``macs`` (attention's products grow with it) and ``latency``."""

    def __post_init__(self) -> None:
        check_fields(self, "budget.")
        if not 0.0 <= self.pruned_fraction < 1.0:
            raise ConfigurationError(
                f"budget.pruned_fraction: expected a number in [0, 1), got {self.pruned_fraction}; give 0.2 to remove 20 %"
            )
        COSTS.find(self.of, "budget.of")
        for name, value in (("protect_first", self.protect_first), ("protect_last", self.protect_last)):
            if value < 0:
                raise ConfigurationError(f"budget.{name}: expected a number of layers, 0 or more, got {value}; give 0 to protect none")
        if not 0.0 <= self.keep_at_least <= 1.0:
            raise ConfigurationError(f"budget.keep_at_least: expected a number in [0, 1], got {self.keep_at_least}; give 0.05 to keep 5 %")
        if self.seq_len < 1:
            raise ConfigurationError(f"budget.seq_len: expected a number of tokens, 1 or more, got {self.seq_len}; give 128")
        self._check_absolute()

    def _check_absolute(self) -> None:
        given = [name for name in ABSOLUTE_TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigurationError(f"budget: expected at most one absolute target, got {' and '.join(given)}; give one of them")
        for name in given:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"budget.{name}: expected a positive number, got {getattr(self, name)}; give what is to be left")
            if COSTS.find(self.of).target == name:
                continue
            meant = next(of for of in ("block", *COSTS) if COSTS.find(of).target == name)
            if self.of != "block":
                raise ConfigurationError(f"budget.of: expected {meant!r} with {name}, got {self.of!r}; leave it out")
            object.__setattr__(self, "of", meant)  # the dataclass is frozen for everyone else

    @property
    def absolute(self) -> str | None:
        """Name of the absolute target, if one is given: ``parameters_left``, ..."""
        return next((name for name in ABSOLUTE_TARGETS if getattr(self, name) is not None), None)

    def to_dict(self, costs: UnitCosts | None = None) -> dict[str, Any]:
        """What a plan records: ``pruned_fraction`` and ``of``, and an absolute target with the fraction it comes to.

        Args:
            costs: as made by :meth:`costs`; needed for an absolute target only.
        """
        if self.absolute and costs is None:
            raise ConfigurationError(
                f"costs: expected those of the model to record budget.{self.absolute}, got none; give budget.costs(...)"
            )
        fraction = costs.fraction if self.absolute and costs is not None else self.pruned_fraction
        record: dict[str, Any] = {"pruned_fraction": fraction, "of": self.of}
        if self.absolute:
            record[self.absolute] = getattr(self, self.absolute)
        if COSTS.find(self.of).needs_length:
            record["seq_len"] = self.seq_len
        return record

    def is_protected(self, layer: int, layers: int) -> bool:
        """Whether a layer must stay whole."""
        return layer < self.protect_first or layer >= layers - self.protect_last

    def smallest_width(self, units: int, at_least: int = 1) -> int:
        """Units of a group that stay at the least."""
        return max(at_least, -(-int(units * self.keep_at_least * 1000) // 1000))

    def most_removed(self, structure: ModelStructure) -> dict[str, int]:
        """Group name -> units that may go at the most: none in a protected layer."""
        return {
            g.name: 0 if self.is_protected(g.layer, structure.layers) else g.units - self.smallest_width(g.units, g.at_least)
            for g in structure.groups
        }

    def costs(self, structure: ModelStructure, *, sizes: ModelSizes | None = None, latency: LatencyTable | None = None) -> UnitCosts:
        """What each unit costs and how much has to go, in what the budget counts.

        A latency follows the table's straight line: a plan meets the *modelled* latency within 0.1 %, and the device's within what the
        line is worth; see :func:`adapruner.pruning.costs.latency_table.correct`.

        Args:
            sizes: of the dense model (``costs.sizes.measure_sizes``), for ``macs`` and ``memory``.
            latency: measured on the device (``costs.latency_table``), for ``latency``.

        Raises:
            BudgetError: if no plan can remove as much; the message has what is reachable.
            ConfigurationError: if sizes or the latency table are needed and missing, the table is for another length, or more
                layers are protected than there are.
        """
        self._check_layers(structure.layers)
        unit = COSTS.find(self.of)
        counted = unit.count(CostInputs(structure, self.seq_len, sizes, latency))
        argument, dense = self.absolute or "pruned_fraction", counted.whole if counted.dense is None else counted.dense
        asked = getattr(self, argument)
        fraction = float(round(counted.whole * asked)) if unit.in_whole_numbers else counted.whole * asked
        remove = dense - asked if self.absolute else fraction
        costs = UnitCosts(counted.per_unit, counted.whole, remove, unit.words, dense, f"budget.{argument}", asked)
        self._check_reachable(costs, structure)
        return costs

    def _check_layers(self, layers: int) -> None:
        for name in ("protect_first", "protect_last"):
            if getattr(self, name) > layers:
                raise ConfigurationError(
                    f"budget.{name}: expected at most the model's {layers} layers, got {getattr(self, name)}; protect fewer"
                )
        if self.protect_first + self.protect_last >= layers and (self.absolute or self.pruned_fraction):
            raise BudgetError(
                f"budget.protect_first, budget.protect_last: expected one of the model's {layers} layers to prune, "
                f"got {self.protect_first} and {self.protect_last} protected; protect fewer"
            )

    def _check_reachable(self, costs: UnitCosts, structure: ModelStructure) -> None:
        slices = in_slices(structure)
        removed = self.most_removed(slices)
        reachable = sum(removed[s.name] * costs.per_unit[g.name] * g.sets for s, g in zip(slices.groups, structure.groups, strict=True))
        if 0 <= costs.remove <= reachable * (1 + 1e-12):
            return
        if self.absolute:
            low, high = costs.shown(min(reachable, costs.dense)), costs.shown(0.0)
            what = "parameters" if self.absolute == "parameters_left" else costs.what
            raise BudgetError(
                f"{costs.argument}: expected a target from {low} to {high} {what} for this model"
                f"{' and protection' if self._protects else ''}, got {costs.asked}; {self._remedy('give one in between')}"
            )
        most = f"{math.floor(reachable / costs.whole * 10_000) / 10_000:.4f}"  # rounded up it would be refused again
        raise BudgetError(
            f"{costs.argument}: expected at most {most} of {costs.what} for this model{' and protection' if self._protects else ''}, "
            f"got {costs.asked}; {self._remedy(f'give {most} or less')}"
        )

    @property
    def _protects(self) -> bool:
        return bool(self.protect_first or self.protect_last)

    def _remedy(self, first: str) -> str:
        """With what else can be changed; not where the budget was written as one number, which has nothing else."""
        others = ["protect fewer layers"] if self._protects else []
        others += ["lower budget.keep_at_least"] if not is_shortened("budget.pruned_fraction") and self.keep_at_least else []
        *parts, last = [first, *others]
        return f"{', '.join(parts)}, or {last}" if parts else last


#: Fields that give what is to be left, in the units of a cost, in place of a fraction that is to go: those that are left out by default.
ABSOLUTE_TARGETS = tuple(field.name for field in fields(Budget) if field.default is None)
