"""Milliseconds of one forward, by the straight line of a table that was measured on the device."""

from __future__ import annotations

from adapruner.errors import ConfigurationError
from adapruner.pruning.costs import CostInputs, CostModel, Counted, register_cost


@register_cost
class Latency(CostModel):
    """Milliseconds of one forward."""

    name, words, target, needs_length, timed = "latency", "ms per forward", "latency_ms", True, True

    def count(self, inputs: CostInputs) -> Counted:
        """The table's ms per unit; see :mod:`adapruner.pruning.costs.latency_table`.

        Raises:
            ConfigurationError: if there is no table, or it is for another length or lacks a kind of unit.
        """
        table, groups = inputs.latency, inputs.structure.groups
        if table is None:
            raise ConfigurationError(
                "latency: expected a measured table for a budget of latency, got none; give search.device_latency.measure_table(...)"
            )
        if table.seq_len != inputs.seq_len:
            raise ConfigurationError(
                f"budget.seq_len: expected the latency table's {table.seq_len}, got {inputs.seq_len}; measure at the budget's length"
            )
        missing = sorted({g.kind for g in groups} - set(table.per_unit_ms))
        if missing:
            raise ConfigurationError(f"latency: expected ms per unit of {missing[0]}, got none; measure the table on this model")
        return Counted({g.name: table.per_unit_ms[g.kind] for g in groups}, table.whole_ms)
