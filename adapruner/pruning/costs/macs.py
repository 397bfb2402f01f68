"""Multiply-accumulates per token of the whole model, the output head included."""

from __future__ import annotations

from adapruner.models.units import UnitGroup
from adapruner.pruning.costs import CostInputs, CostModel, Counted, register_cost


@register_cost
class Macs(CostModel):
    """Multiply-accumulates per token."""

    name, words, target, needs_length = "macs", "multiply-accumulates per token", "macs_left", True

    def count(self, inputs: CostInputs) -> Counted:
        """The counts of :func:`macs_per_unit`; layers without units count in the whole alone."""
        groups = inputs.structure.groups
        per_unit = {g.name: float(macs_per_unit(g, inputs.seq_len)) for g in groups}
        return Counted(per_unit, inputs.known_sizes(self.name).fixed_macs + sum(g.units * per_unit[g.name] for g in groups))


def macs_per_unit(group: UnitGroup, seq_len: int) -> int:
    """Multiply-accumulates per token that go with one unit.

    One for each weight of the unit's rows and columns; biases are additions and count as nothing. For attention also
    ``2 * seq_len`` for each of its query channels: scores and weighted values over all ``seq_len`` positions, as if the
    product were not causal. This is what ``evaluation.cost.count_macs`` counts, divided by tokens.

    The width of the residual stream is recovered from the parameters: every coupled matrix has it on its other side, and
    there are fewer biases than rows and columns.
    """
    channels = group.channels_of([0])
    lines = sum(len(m.positions(channels)) for m in group.members)
    hidden = group.parameters_per_unit // lines
    products = 2 * seq_len * group.channels_per_unit if group.kind == "attention" else 0
    return lines * hidden + products
