"""Exactly the fractions that were given, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.units import ModelStructure
from adapruner.pruning.costs import UnitCosts


def listed_counts(
    structure: ModelStructure, most: Mapping[str, int], costs: UnitCosts, attention: Sequence[float] | None, ffn: Sequence[float] | None
) -> dict[str, int]:
    """Group name -> number of units to remove: each layer's fraction of units, rounded.

    Args:
        most: group name -> how many units may go.
        attention: fraction of attention units removed per layer; None removes none.
        ffn: fraction of FFN channels removed per layer; None removes none.

    Raises:
        ConfigurationError: if a list has another length than the model, or takes more of a layer than its protection allows.
        BudgetError: if what the lists remove is more than 0.1 % off the budget.
    """
    lists = {"attention": attention, "ffn": ffn}
    for kind, given in lists.items():
        if given is not None and len(given) != structure.layers:
            raise ConfigurationError(
                f"allocation.{kind}: expected {structure.layers} fractions, one for each layer, got {len(given)}; give 0 where nothing goes"
            )
    counts = {}
    for g in structure.groups:
        fractions = lists[g.kind]
        counts[g.name] = 0 if fractions is None else round(fractions[g.layer] * g.units)
        if counts[g.name] > most[g.name] and fractions is not None:
            raise ConfigurationError(
                f"allocation.{g.kind}: expected at most {int(most[g.name] / g.units * 1e4) / 1e4} in layer {g.layer}, got "
                f"{fractions[g.layer]}; lower it, or change the budget's keep_at_least, protect_first or protect_last"
            )
    removed = sum(counts[g.name] * costs.per_unit[g.name] for g in structure.groups)
    if abs(removed - costs.remove) > costs.slack:
        fraction = removed / costs.whole
        raise BudgetError(
            f"{costs.argument}: expected what the lists remove, {fraction:.6f} of {costs.what}, got {costs.asked}; "
            f"give pruned_fraction {fraction:.6f}, or change allocation.attention and allocation.ffn"
        )
    return counts
