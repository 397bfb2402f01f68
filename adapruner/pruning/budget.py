"""How much is to go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.latency import LatencyTable
from adapruner.models.sizes import ModelSizes, macs_per_unit
from adapruner.models.units import ModelStructure
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.tied_sets import in_slices

GIB = 2**30

#: What can be counted, in words.
_COUNTED = {
    "block": "block parameters",
    "all": "all parameters",
    "macs": "multiply-accumulates per token",
    "memory": "GiB of weights",
    "latency": "ms per forward",
}
#: Absolute target -> what it may be counted in; the first is meant when ``of`` was left as it is.
_ABSOLUTE = {"parameters_left": ("block", "all"), "macs_left": ("macs",), "weight_memory_gib": ("memory",), "latency_ms": ("latency",)}


@dataclass(frozen=True)
class Budget:
    """A target for the pruned model's size: a removed fraction, or at most one absolute number in its place."""

    pruned_fraction: float = 0.2
    """Fraction to remove, in [0, 1). An absolute target below replaces it."""
    of: Literal["block", "all", "macs", "memory", "latency"] = "block"
    """What the fraction counts: ``block``, the attention and FFN matrices that units live in; ``all``, every parameter
    of the model, embeddings included; ``macs``, multiply-accumulates per token of the whole model; ``memory``, bytes of
    the whole model's weights; ``latency``, ms of one forward. An absolute target sets it by itself."""
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
        if not 0.0 <= self.pruned_fraction < 1.0:
            raise ConfigurationError(
                f"budget.pruned_fraction: expected a number in [0, 1), got {self.pruned_fraction}; give 0.2 to remove 20 %"
            )
        if self.of not in _COUNTED:
            raise ConfigurationError(
                f"budget.of: expected 'block' or 'all', got {self.of!r}; name one of them, or one of 'macs', 'memory', 'latency'"
            )
        for name, value in (("protect_first", self.protect_first), ("protect_last", self.protect_last)):
            if value < 0:
                raise ConfigurationError(f"budget.{name}: expected a number of layers, 0 or more, got {value}; give 0 to protect none")
        if not 0.0 <= self.keep_at_least <= 1.0:
            raise ConfigurationError(f"budget.keep_at_least: expected a number in [0, 1], got {self.keep_at_least}; give 0.05 to keep 5 %")
        if self.seq_len < 1:
            raise ConfigurationError(f"budget.seq_len: expected a number of tokens, 1 or more, got {self.seq_len}; give 128")
        self._check_absolute()

    def _check_absolute(self) -> None:
        given = [name for name in _ABSOLUTE if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigurationError(f"budget: expected at most one absolute target, got {' and '.join(given)}; give one of them")
        for name in given:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"budget.{name}: expected a positive number, got {getattr(self, name)}; give what is to be left")
            if self.of not in _ABSOLUTE[name] and self.of != "block":
                raise ConfigurationError(f"budget.of: expected {_ABSOLUTE[name][0]!r} with {name}, got {self.of!r}; leave it out")
            if self.of not in _ABSOLUTE[name]:
                object.__setattr__(self, "of", _ABSOLUTE[name][0])  # the dataclass is frozen for everyone else

    @property
    def absolute(self) -> str | None:
        """Name of the absolute target, if one is given: ``parameters_left``, ..."""
        return next((name for name in _ABSOLUTE if getattr(self, name) is not None), None)

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
        if self.of in ("macs", "latency"):
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

        Parameters and GiB are those of the coupled tensors, MACs as :func:`adapruner.models.sizes.macs_per_unit` has them.
        Latency follows the table's straight line: a plan meets the *modelled* latency within 0.1 %, and the device's within
        what the line is worth; see :func:`adapruner.models.latency.correct`.

        Args:
            sizes: of the dense model (``structure.sizes.measure_sizes``), for ``macs`` and ``memory``.
            latency: measured on the device (``evaluation.latency_table``), for ``latency``.

        Raises:
            BudgetError: if no plan can remove as much; the message has what is reachable.
            ConfigurationError: if sizes or the latency table are needed and missing, the table is for another length, or more
                layers are protected than there are.
        """
        self._check_layers(structure.layers)
        per_unit, whole = self._count(structure, sizes, latency)
        argument = self.absolute or "pruned_fraction"
        dense = float(structure.parameters) if self.of == "block" else whole
        asked = getattr(self, argument)
        fraction = float(round(whole * asked)) if self.of in ("block", "all") else whole * asked
        remove = dense - asked if self.absolute else fraction
        costs = UnitCosts(per_unit, whole, remove, _COUNTED[self.of], dense, f"budget.{argument}", asked)
        self._check_reachable(costs, structure)
        return costs

    def parameters_to_remove(self, structure: ModelStructure) -> int:
        """The target of a parameter budget, in parameters.

        Raises:
            BudgetError: if no plan can remove as much; the message has the reachable fraction.
            ConfigurationError: if the budget counts something else.
        """
        if self.of not in ("block", "all"):
            raise ConfigurationError(f"budget.of: expected 'block' or 'all' to count parameters, got {self.of!r}; use budget.costs")
        return int(self.costs(structure).remove)

    def _count(self, structure: ModelStructure, sizes: ModelSizes | None, latency: LatencyTable | None) -> tuple[dict[str, float], float]:
        """Group name -> cost of a unit, and the whole."""
        if self.of in ("block", "all"):
            whole = structure.block_parameters if self.of == "block" else structure.parameters
            return {g.name: float(g.parameters_per_unit) for g in structure.groups}, float(whole)
        if self.of == "latency":
            return self._count_latency(structure, latency)
        if sizes is None:
            raise ConfigurationError(
                f"sizes: expected the dense model's for a budget of {self.of}, got none; give measure_sizes(model, structure)"
            )
        if self.of == "memory":  # a power of two: dividing by it loses nothing
            per_parameter = sizes.bytes_per_parameter / GIB
            return {g.name: g.parameters_per_unit * per_parameter for g in structure.groups}, sizes.weight_bytes / GIB
        per_unit = {g.name: float(macs_per_unit(g, self.seq_len)) for g in structure.groups}
        return per_unit, sizes.fixed_macs + sum(g.units * per_unit[g.name] for g in structure.groups)

    def _count_latency(self, structure: ModelStructure, latency: LatencyTable | None) -> tuple[dict[str, float], float]:
        if latency is None:
            raise ConfigurationError(
                "latency: expected a measured table for a budget of latency, got none; give measure_latency_table(...)"
            )
        if latency.seq_len != self.seq_len:
            raise ConfigurationError(
                f"budget.seq_len: expected the latency table's {latency.seq_len}, got {self.seq_len}; measure at the budget's length"
            )
        missing = sorted({g.kind for g in structure.groups} - set(latency.per_unit_ms))
        if missing:
            raise ConfigurationError(f"latency: expected ms per unit of {missing[0]}, got none; measure the table on this model")
        return {g.name: latency.per_unit_ms[g.kind] for g in structure.groups}, latency.whole_ms

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
        most = self.most_removed(slices)
        reachable = sum(most[s.name] * costs.per_unit[g.name] * g.sets for s, g in zip(slices.groups, structure.groups, strict=True))
        if 0 <= costs.remove <= reachable * (1 + 1e-12):
            return
        if self.absolute:
            low, high = costs.shown(min(reachable, costs.dense)), costs.shown(0.0)
            what = "parameters" if self.absolute == "parameters_left" else costs.what
            raise BudgetError(
                f"{costs.argument}: expected a target from {low} to {high} {what} for this model and protection, got {costs.asked}; "
                "give one in between, protect fewer layers, or lower keep_at_least"
            )
        raise BudgetError(
            f"{costs.argument}: expected at most {reachable / costs.whole:.4f} of {costs.what} for this model and protection, "
            f"got {costs.asked}; prune less, protect fewer layers, or lower keep_at_least"
        )
