"""Every unprotected layer loses the same number of heads and of FFN channels."""

from __future__ import annotations

from collections.abc import Mapping

from adapruner.models.units import UnitGroup
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.regular_widths import nearest_count


def uniform_counts(groups: list[UnitGroup], most: Mapping[str, int], costs: UnitCosts, round_to: int = 1) -> dict[str, int]:
    """Group name -> number of units to remove, the same in all layers.

    Heads get the budget's fraction, rounded, and channels the rest. Where that misses the target by more than 0.1 %, the number of
    heads nearest to the fraction that does not, else the one that comes nearest to the target.
    """
    attention, ffn = ([g for g in groups if g.kind == kind] for kind in ("attention", "ffn"))
    whole = sum(g.units * costs.per_unit[g.name] for g in groups)
    fraction = costs.remove / whole if whole else 0.0
    limit = min((most[g.name] for g in attention), default=0)
    first = min(round(attention[0].units * fraction), limit) if attention else 0
    per_head, per_channel = (sum(costs.per_unit[g.name] for g in part) for part in (attention, ffn))

    def channels(heads: int) -> int:
        wanted = (costs.remove - heads * per_head) / per_channel
        return min((nearest_count(g, wanted, most[g.name], round_to) for g in ffn), default=0)

    def miss(heads: int) -> float:
        return abs(costs.remove - heads * per_head - (channels(heads) * per_channel if ffn else 0.0))

    near = sorted(range(limit + 1), key=lambda heads: (abs(heads - first), miss(heads)))
    hits = (heads for heads in near if miss(heads) <= costs.slack)
    heads = next(hits, None)
    if heads is None:
        heads = min(near, key=miss)
    count = channels(heads) if ffn else 0
    return {g.name: heads if g.kind == "attention" else count for g in groups}
