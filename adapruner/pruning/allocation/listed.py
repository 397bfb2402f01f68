"""Exactly the fractions that were given, layer by layer."""

from __future__ import annotations

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.pruning.allocation import AllocationInputs, AllocationMethod, register_allocation


@register_allocation
class Listed(AllocationMethod):
    """Each layer's fraction of units, rounded; scores decide within a layer only."""

    name = "list"
    uses = frozenset({"attention", "ffn"})
    takes_any_budget = False

    def keep(self, inputs: AllocationInputs) -> dict[str, list[int]]:
        """See :meth:`AllocationMethod.keep`.

        Raises:
            ConfigurationError: if a list has another length than the model, or takes more of a layer than its protection allows.
            BudgetError: if what the lists remove is more than 0.1 % off the budget.
        """
        layers, costs = inputs.structure.layers, inputs.costs
        lists = {kind: fractions for kind in ("attention", "ffn") if (fractions := getattr(inputs.options, kind)) is not None}
        for kind, given in lists.items():
            if len(given) != layers:
                raise ConfigurationError(
                    f"allocation.{kind}: expected {layers} fractions, one for each layer, got {len(given)}; give 0 where nothing goes"
                )
        counts = {}
        for g in inputs.structure.groups:
            fraction, most = lists[g.kind][g.layer] if g.kind in lists else 0.0, inputs.most[g.name]
            counts[g.name] = round(fraction * g.units)
            if counts[g.name] > most:
                raise ConfigurationError(
                    f"allocation.{g.kind}: expected at most {int(most / g.units * 1e4) / 1e4} in layer {g.layer}, got {fraction}; "
                    "lower it, or change the budget's keep_at_least, protect_first or protect_last"
                )
        removed = sum(counts[g.name] * costs.per_unit[g.name] for g in inputs.structure.groups)
        if abs(removed - costs.remove) > costs.slack:
            fraction = removed / costs.whole
            raise BudgetError(
                f"{costs.argument}: expected what the lists remove, {fraction:.6f} of {costs.what}, got {costs.asked}; "
                f"give pruned_fraction {fraction:.6f}, or change allocation.attention and allocation.ffn"
            )
        return inputs.keep_highest(counts)
