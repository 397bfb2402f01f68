"""Makes widths regular: the same number of heads everywhere, FFN widths in hardware's multiples.

What is removed stays as close to the ranking as the constraint allows, and the budget is met again by whole steps of the FFN;
where they are too coarse for it, by whole heads as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapruner.models.units import UnitGroup
from adapruner.pruning.allocation import AllocationInputs

#: Combinations of heads and FFN steps that are carried out and compared; more are only reckoned.
_TRIED = 8


def nearest_count(group: UnitGroup, wanted: float, most: int, round_to: int) -> int:
    """The number of channels to remove nearest to ``wanted`` that leaves a multiple of ``round_to``, or all of them."""
    if round_to <= 1:
        return max(0, min(round(wanted), most))
    lowest = _lowest_width(group, most, round_to)
    width = max(lowest, round((group.units - wanted) / round_to) * round_to)
    return group.units - min(width, group.units)


def make_regular(counts: Mapping[str, int], priorities: Mapping[str, Tensor], inputs: AllocationInputs) -> dict[str, int]:
    """Group name -> number of units to remove, regular, as near to the target as whole steps come.

    Args:
        counts: what is removed before.
        priorities: group name -> ``[units]``; the lowest go first.
    """
    counts, steps = dict(counts), _Steps(priorities, inputs)
    if steps.uniform_heads and steps.attention:
        mean = max(0, round(sum(counts[g.name] - inputs.wider(g) for g in steps.attention) / len(steps.attention)))
        counts |= {g.name: min(mean + inputs.wider(g), inputs.most[g.name]) for g in steps.attention}
    for g in steps.ffn:
        counts[g.name] = nearest_count(g, counts[g.name], inputs.most[g.name], steps.round_to)
    steps.meet_target(counts)
    if abs(inputs.missing(counts)) > inputs.costs.slack and steps.attention and steps.ffn:
        counts = steps.with_other_heads(counts)
    return counts


def _lowest_width(group: UnitGroup, most: int, round_to: int) -> int:
    """The smallest multiple that may stay; a group narrower than it stays whole."""
    return max(round_to, -(-(group.units - most) // round_to) * round_to)


class _Steps:
    """Whole steps between regular widths: their priorities and which comes next."""

    def __init__(self, priorities: Mapping[str, Tensor], inputs: AllocationInputs) -> None:
        self.attention, self.ffn = inputs.of_kind("attention"), inputs.of_kind("ffn")
        self.inputs, self.most, self.costs = inputs, inputs.most, inputs.costs
        self.uniform_heads, self.round_to = inputs.options.heads == "uniform", inputs.round_to
        self.ranked = {g.name: torch.sort(priorities[g.name]).values.cumsum(0).tolist() for g in inputs.groups}

    def priority(self, g: UnitGroup, low: int, high: int) -> float:
        """Summed priority of the units that rank from ``low`` to ``high``."""
        below = self.ranked[g.name][low - 1] if low else 0.0
        return float(self.ranked[g.name][high - 1] - below)

    def next_width(self, g: UnitGroup, count: int, down: bool) -> tuple[float, int] | None:
        """Summed priority and count of removed channels of the next regular width, if there is one; negated where channels come back."""
        width = g.units - count
        if down:
            narrower = (width - 1) // self.round_to * self.round_to
            if narrower < _lowest_width(g, self.most[g.name], self.round_to):
                return None
            return self.priority(g, count, g.units - narrower), g.units - narrower
        wider = min((width // self.round_to + 1) * self.round_to, g.units)  # a dense width may be no multiple
        return (-self.priority(g, g.units - wider, count), g.units - wider) if count else None

    def meet_target(self, counts: dict[str, int]) -> None:
        """Takes one step of one layer's FFN at a time, the lowest priority first, until another would lead away from the target."""
        missing = self.inputs.missing(counts)
        down = missing > 0
        widths = {g.name: width for g in self.ffn if (width := self.next_width(g, counts[g.name], down)) is not None}
        cost = {g.name: self.costs.per_unit[g.name] for g in self.ffn}
        groups = {g.name: g for g in self.ffn}
        while widths and abs(missing) > self.round_to * cost[self.ffn[0].name] / 2:
            name = min(widths, key=lambda name: widths[name][0])
            _, count = widths.pop(name)
            missing -= (count - counts[name]) * cost[name]
            counts[name] = count
            following = self.next_width(groups[name], count, down)
            if following is not None:
                widths[name] = following

    def with_other_heads(self, counts: dict[str, int]) -> dict[str, int]:
        """The nearest to the target among plans with a few heads more or fewer; of those within 0.1 % the one with the fewest."""
        slack, missing = self.costs.slack, self.inputs.missing(counts)
        per_head = self.costs.per_unit[self.attention[0].name] * (len(self.attention) if self.uniform_heads else 1)
        size = self.round_to * self.costs.per_unit[self.ffn[0].name]

        def expected(shift: int) -> tuple[bool, float, int]:
            rest = missing - shift * per_head
            rest = abs(rest - round(rest / size) * size)
            return rest > slack, (0.0 if rest <= slack else rest), abs(shift)

        widest = 4 if self.uniform_heads else max(4, len(self.attention))
        shifts = sorted((shift for shift in range(-widest, widest + 1) if shift), key=expected)
        shifts = shifts[:_TRIED]
        if abs(missing) > size / 2:  # the FFN is at its limit: heads alone can make up for it
            alone = round(missing / per_head)
            shifts = [alone, alone - 1, alone + 1, *shifts]
        best = counts
        for shift in shifts:
            shifted = self.shift_heads(counts, shift)
            if shifted is None:
                continue
            self.meet_target(shifted)
            if abs(self.inputs.missing(shifted)) < abs(self.inputs.missing(best)):
                best = shifted
            if abs(self.inputs.missing(best)) <= slack:
                break
        return best

    def shift_heads(self, counts: Mapping[str, int], shift: int) -> dict[str, int] | None:
        """A copy with ``shift`` heads more (or fewer) removed, the lowest first; in every layer where heads are uniform."""
        shifted, step = dict(counts), 1 if shift > 0 else -1
        for _ in range(abs(shift)):
            able = [g for g in self.attention if 0 <= shifted[g.name] + step <= self.most[g.name]]
            if self.uniform_heads and len(able) == len(self.attention):
                shifted |= {g.name: shifted[g.name] + step for g in able}
            elif able and not self.uniform_heads:
                best = min(able, key=lambda g: step * self.priority(g, *sorted((shifted[g.name], shifted[g.name] + step))))
                shifted[best.name] += step
            else:
                return None
        return shifted
