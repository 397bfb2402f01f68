"""Each layer's removed share of its cost is a base plus the profile over depth; scores decide within a layer only.

Shares are clipped to [0, 1 - ``keep_at_least``], and the base is found by bisection. Heads are rounded; the FFN of the same layer
absorbs that, and channels are rounded so that the target is met within half of one.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapruner.pruning.allocation import AllocationInputs, AllocationMethod, register_allocation
from adapruner.pruning.allocation.gamma import priorities_of
from adapruner.pruning.allocation.regular_widths import make_regular


@register_allocation
class DepthProfile(AllocationMethod):
    """A share of each layer by its place."""

    name = "depth"
    uses = frozenset({"heads", "round_to", "depth_slope", "depth_curve"})

    def keep(self, inputs: AllocationInputs) -> dict[str, list[int]]:
        counts = depth_counts(inputs)
        if inputs.round_to > 1:
            per_unit = inputs.costs.per_unit
            priorities = {g.name: priorities_of(inputs.scores[g.name].double(), per_unit[g.name], 0.0, 0.0) for g in inputs.groups}
            counts = make_regular(counts, priorities, inputs)
        return inputs.keep_highest(counts)


def depth_counts(inputs: AllocationInputs) -> dict[str, int]:
    """Group name -> number of units to remove."""
    layers = sorted({g.layer for g in inputs.groups})
    profile = {layer: inputs.options.profile_at(layer, inputs.structure.layers) for layer in layers}
    bound = 1.0 + max((abs(value) for value in profile.values()), default=0.0)
    low, high = -bound, bound

    def wanted(base: float) -> dict[str, float]:
        shares = {layer: min(max(base + value, 0.0), 1.0 - inputs.keep_at_least) for layer, value in profile.items()}
        return _real_counts(inputs, shares)

    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if inputs.missing(wanted(middle)) > 0 else (low, middle)
    # where the total jumps (a head's rounding, with the FFN at its limit), the nearer side
    return _rounded(min((wanted(low), wanted(high)), key=lambda counts: abs(inputs.missing(counts))), inputs)


def _real_counts(inputs: AllocationInputs, shares: Mapping[int, float]) -> dict[str, float]:
    """Whole heads and real-valued channels; together each layer's share, as far as limits allow."""
    per_unit, most, uniform_heads = inputs.costs.per_unit, inputs.most, inputs.options.heads == "uniform"
    mean = sum(shares.values()) / max(1, len(shares))
    due = {layer: 0.0 for layer in shares}
    for g in inputs.groups:
        due[g.layer] += shares[g.layer] * g.units * per_unit[g.name]
    counts: dict[str, float] = {}
    for g in inputs.of_kind("attention"):
        wider = inputs.wider(g) if uniform_heads else 0
        share = mean if uniform_heads else shares[g.layer]
        counts[g.name] = float(min(wider + round(share * (g.units - wider)), most[g.name]))
        due[g.layer] -= counts[g.name] * per_unit[g.name]
    for g in inputs.of_kind("ffn"):
        counts[g.name] = min(max(due[g.layer] / per_unit[g.name], 0.0), float(most[g.name]))
    return counts


def _rounded(wanted: Mapping[str, float], inputs: AllocationInputs) -> dict[str, int]:
    """Channels to whole numbers; the layers that are furthest from what they want take what is missing."""
    counts, per_unit = {name: round(value) for name, value in wanted.items()}, inputs.costs.per_unit
    missing = inputs.missing(counts)
    while True:
        step = 1 if missing > 0 else -1
        able = [
            g
            for g in inputs.of_kind("ffn")
            if abs(missing) > per_unit[g.name] / 2 and (counts[g.name] < inputs.most[g.name] if step > 0 else counts[g.name] > 0)
        ]
        if not able:
            return counts
        best = max(able, key=lambda g: step * (wanted[g.name] - counts[g.name]))
        counts[best.name] += step
        missing -= step * per_unit[best.name]
