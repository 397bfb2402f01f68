"""Every unprotected layer loses the same number of heads and of FFN channels, so that the result is uniform.

Layers of a model that was pruned before may differ: there every layer is brought to the width of the narrowest first.
"""

from __future__ import annotations

from adapruner.pruning.allocation import AllocationInputs, AllocationMethod, register_allocation
from adapruner.pruning.allocation.regular_widths import nearest_count


@register_allocation
class Uniform(AllocationMethod):
    """Heads get the budget's fraction, rounded, and channels the rest; scores decide within a layer only.

    Where that misses the target by more than 0.1 %, the number of heads nearest to the fraction that does not, else the one that
    comes nearest to the target.
    """

    name = "uniform"
    uses = frozenset({"heads", "round_to"})
    takes_any_budget = False

    def keep(self, inputs: AllocationInputs) -> dict[str, list[int]]:
        costs, most, attention, ffn = inputs.costs, inputs.most, inputs.of_kind("attention"), inputs.of_kind("ffn")
        wider = {g.name: inputs.wider(g) for g in inputs.groups}
        remove = inputs.missing(wider)
        whole = sum((g.units - wider[g.name]) * costs.per_unit[g.name] for g in inputs.groups)
        limit = max(0, min((most[g.name] - wider[g.name] for g in attention), default=0))
        fraction = remove / whole if whole else 0.0
        first = min(max(0, round((attention[0].units - wider[attention[0].name]) * fraction)), limit) if attention else 0
        per_head, per_channel = (sum(costs.per_unit[g.name] for g in part) for part in (attention, ffn))

        def channels(heads: int) -> int:
            wanted = (remove - heads * per_head) / per_channel if ffn else 0.0
            narrow, room = [g for g in ffn if not wider[g.name]], min((most[g.name] - wider[g.name] for g in ffn), default=0)
            return min((nearest_count(g, wanted, min(most[g.name], max(0, room)), inputs.round_to) for g in narrow), default=0)

        def miss(heads: int) -> float:
            return abs(remove - heads * per_head - channels(heads) * per_channel)

        near = sorted(range(limit + 1), key=lambda heads: (abs(heads - first), miss(heads)))
        heads = next((heads for heads in near if miss(heads) <= costs.slack), None)
        if heads is None:
            heads = min(near, key=miss)
        counts = {"attention": heads, "ffn": channels(heads)}
        return inputs.keep_highest({g.name: wider[g.name] + counts[g.kind] for g in inputs.groups})
