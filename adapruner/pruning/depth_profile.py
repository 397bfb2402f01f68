"""How much more the late layers lose than the early ones, and the ends than the middle: two numbers over depth.

``d`` runs from -1 (first layer) to 1 (last), protected layers included. The profile ``slope * d + curve * (d^2 - 1/3)`` has mean 0
over depth, so that it moves the budget between layers and does not change it. Positive: the late layers, and both ends, lose more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adapruner.models.units import UnitGroup
from adapruner.pruning.costs import UnitCosts


def profile_at(layer: int, layers: int, slope: float, curve: float) -> float:
    """The profile's value in one layer.

    >>> profile_at(0, 5, 0.3, 0.0), profile_at(2, 5, 0.3, 0.0), profile_at(4, 5, 0.3, 0.0)
    (-0.3, 0.0, 0.3)
    """
    d = 2.0 * layer / (layers - 1) - 1.0 if layers > 1 else 0.0
    return slope * d + curve * (d * d - 1.0 / 3.0)


def depth_counts(
    groups: list[UnitGroup],
    most: Mapping[str, int],
    costs: UnitCosts,
    profile: Callable[[int], float],
    keep_at_least: float,
    uniform_heads: bool = False,
) -> dict[str, int]:
    """Group name -> number of units to remove: each layer's removed share of its cost is ``base + profile(layer)``.

    Shares are clipped to [0, 1 - ``keep_at_least``], and ``base`` is found by bisection. Heads are rounded; the FFN of the same
    layer absorbs that, and channels are rounded so that the target is met within half of one.

    Args:
        groups: those that may lose units.
        most: group name -> how many units may go.
        profile: of a layer's number.
        uniform_heads: the same number of heads in all layers, by the mean share.
    """
    shape = {layer: profile(layer) for layer in sorted({g.layer for g in groups})}
    bound = 1.0 + max((abs(value) for value in shape.values()), default=0.0)
    low, high = -bound, bound

    def wanted(base: float) -> dict[str, float]:
        shares = {layer: min(max(base + value, 0.0), 1.0 - keep_at_least) for layer, value in shape.items()}
        return _real_counts(groups, most, costs, shares, uniform_heads)

    def total(counts: Mapping[str, float]) -> float:
        return sum(counts[g.name] * costs.per_unit[g.name] for g in groups)

    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if total(wanted(middle)) < costs.remove else (low, middle)
    # where the total jumps (a head's rounding, with the FFN at its limit), the nearer side
    sides = [wanted(low), wanted(high)]
    return _rounded(min(sides, key=lambda counts: abs(total(counts) - costs.remove)), groups, most, costs)


def _real_counts(
    groups: list[UnitGroup], most: Mapping[str, int], costs: UnitCosts, shares: Mapping[int, float], uniform_heads: bool
) -> dict[str, float]:
    """Whole heads and real-valued channels; together each layer's share, as far as limits allow."""
    mean = sum(shares.values()) / max(1, len(shares))
    due = {layer: 0.0 for layer in shares}
    for g in groups:
        due[g.layer] += shares[g.layer] * g.units * costs.per_unit[g.name]
    counts: dict[str, float] = {}
    for g in groups:
        if g.kind == "attention":
            counts[g.name] = float(min(round((mean if uniform_heads else shares[g.layer]) * g.units), most[g.name]))
            due[g.layer] -= counts[g.name] * costs.per_unit[g.name]
    for g in groups:
        if g.kind != "attention":
            counts[g.name] = min(max(due[g.layer] / costs.per_unit[g.name], 0.0), float(most[g.name]))
    return counts


def _rounded(wanted: Mapping[str, float], groups: list[UnitGroup], most: Mapping[str, int], costs: UnitCosts) -> dict[str, int]:
    """Channels to whole numbers; the layers that are furthest from what they want take what is missing."""
    counts = {name: round(value) for name, value in wanted.items()}
    ffn = [g for g in groups if g.kind == "ffn"]
    missing = costs.remove - sum(counts[g.name] * costs.per_unit[g.name] for g in groups)
    while True:
        step = 1 if missing > 0 else -1
        able = [
            g
            for g in ffn
            if abs(missing) > costs.per_unit[g.name] / 2 and (counts[g.name] < most[g.name] if step > 0 else counts[g.name] > 0)
        ]
        if not able:
            return counts
        best = max(able, key=lambda g: step * (wanted[g.name] - counts[g.name]))
        counts[best.name] += step
        missing -= step * costs.per_unit[best.name]
