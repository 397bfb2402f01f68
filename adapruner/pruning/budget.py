"""How much is to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from adapruner.anatomy.units import ModelAnatomy
from adapruner.errors import BudgetError, ConfigurationError


@dataclass(frozen=True)
class Budget:
    """A target for the pruned model's size."""

    pruned_fraction: float = 0.2
    """Fraction of the parameters to remove, in [0, 1)."""
    of: Literal["block", "all"] = "block"
    """What the fraction counts: ``block``, the attention and FFN matrices that units live in; ``all``, every parameter
    of the model, embeddings included."""
    protect_first: int = 0
    """Number of first decoder layers that lose nothing."""
    protect_last: int = 0
    """Number of last decoder layers that lose nothing."""
    keep_at_least: float = 0.05
    """Smallest fraction of each group's units that stays, whatever their scores; at least one unit always stays."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.pruned_fraction < 1.0:
            raise ConfigurationError(
                f"budget.pruned_fraction: expected a number in [0, 1), got {self.pruned_fraction}; give 0.2 to remove 20 %"
            )
        if self.of not in ("block", "all"):
            raise ConfigurationError(f"budget.of: expected 'block' or 'all', got {self.of!r}; name one of them")
        for name, value in (("protect_first", self.protect_first), ("protect_last", self.protect_last)):
            if value < 0:
                raise ConfigurationError(f"budget.{name}: expected a number of layers, 0 or more, got {value}; give 0 to protect none")
        if not 0.0 <= self.keep_at_least <= 1.0:
            raise ConfigurationError(f"budget.keep_at_least: expected a number in [0, 1], got {self.keep_at_least}; give 0.05 to keep 5 %")

    def to_dict(self) -> dict[str, Any]:
        """What a plan records."""
        return {"pruned_fraction": self.pruned_fraction, "of": self.of}

    def is_protected(self, layer: int, layers: int) -> bool:
        """Whether a layer must stay whole."""
        return layer < self.protect_first or layer >= layers - self.protect_last

    def smallest_width(self, units: int) -> int:
        """Units of a group that stay at the least."""
        return max(1, -(-int(units * self.keep_at_least * 1000) // 1000))

    def parameters_to_remove(self, anatomy: ModelAnatomy) -> int:
        """The target, in parameters.

        Raises:
            BudgetError: if no plan can remove as much; the message has the reachable fraction.
        """
        whole = anatomy.block_parameters if self.of == "block" else anatomy.parameters
        target = round(whole * self.pruned_fraction)
        reachable = sum(
            (g.units - self.smallest_width(g.units)) * g.parameters_per_unit
            for g in anatomy.groups
            if not self.is_protected(g.layer, anatomy.layers)
        )
        if target > reachable:
            raise BudgetError(
                f"budget.pruned_fraction: expected at most {reachable / whole:.4f} of {self.of} parameters for this model and protection, "
                f"got {self.pruned_fraction}; prune less, protect fewer layers, or lower keep_at_least"
            )
        return target
