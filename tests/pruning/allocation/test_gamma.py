"""The ranking by other costs than parameters, and the exchange of heads for channels at the far end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.costs.sizes import measure_sizes
from tests.conftest import build_model
from tests.pruning.allocation.test_allocation import draw_scores

MODEL = build_model("llama", intermediate_size=160)
STRUCTURE = trace_structure(MODEL)
SIZES = measure_sizes(MODEL, STRUCTURE)
TABLE = LatencyTable({"attention": 0.313, "ffn": 0.0177}, whole_ms=20.0, seq_len=128, batch_size=1, device="none")


def slow_ranking(scores: dict[str, torch.Tensor], budget: Budget, costs: UnitCosts) -> dict[str, list[int]]:
    """One unit at a time: always the cheapest score per cost that still fits."""
    units = [
        (float(s) / costs.per_unit[g.name], i, g, u) for i, g in enumerate(STRUCTURE.groups) for u, s in enumerate(scores[g.name].double())
    ]
    kept, left = {g.name: list(range(g.units)) for g in STRUCTURE.groups}, costs.remove
    for _, _, g, unit in sorted(units, key=lambda row: row[:2]):
        if costs.per_unit[g.name] <= left and len(kept[g.name]) > budget.smallest_width(g.units):
            kept[g.name].remove(unit)
            left -= costs.per_unit[g.name]
    return kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("of", ["macs", "memory", "latency"])
def test_other_costs_equal_the_slow_ranking(of: Any, seed: int) -> None:
    budget, scores = Budget(0.3, of), draw_scores(STRUCTURE, seed)
    costs = budget.costs(STRUCTURE, sizes=SIZES, latency=TABLE)
    assert allocate(scores, STRUCTURE, budget, Allocation(), costs) == slow_ranking(scores, budget, costs)


@settings(max_examples=60, deadline=None)
@given(
    part=st.floats(0.0, 1.0),
    of=st.sampled_from(["block", "all", "macs", "memory", "latency"]),
    seed=st.integers(0, 100),
    keep=st.sampled_from([0.0, 0.05, 0.3]),
    gamma=st.floats(0.0, 1.0),
    last=st.integers(0, 1),
)
def test_every_reachable_target_is_hit_within_a_channel(part: float, of: Any, seed: int, keep: float, gamma: float, last: int) -> None:
    """Up to the last unit that may go: there, where no channel is left to fill up with, heads are exchanged for channels."""
    measured = {"sizes": SIZES, "latency": TABLE}
    probe = Budget(0.0, of, protect_last=last, keep_at_least=keep)
    costs = probe.costs(STRUCTURE, **measured)  # type: ignore[arg-type]
    reachable = sum(most * costs.per_unit[name] for name, most in probe.most_removed(STRUCTURE).items())
    budget = Budget(part * 0.9999 * reachable / costs.whole, of, protect_last=last, keep_at_least=keep)
    costs = budget.costs(STRUCTURE, **measured)  # type: ignore[arg-type]
    kept = allocate(draw_scores(STRUCTURE, seed), STRUCTURE, budget, Allocation("gamma", gamma), costs)
    assert abs(costs.remove - costs.removed_by(kept, STRUCTURE)) <= costs.per_unit["0.ffn"] * (1 + 1e-9)
    assert all(len(kept[g.name]) >= budget.smallest_width(g.units) for g in STRUCTURE.groups)
    assert all(len(kept[g.name]) == g.units for g in STRUCTURE.groups if last and g.layer == 2)


def test_the_exchange_takes_the_cheapest_head_and_returns_the_dearest_channels() -> None:
    scores = {g.name: torch.arange(1.0, g.units + 1) * (1e6 if g.kind == "attention" else 1.0) for g in STRUCTURE.groups}
    scores["1.attention"] *= 0.5
    channel, head = (STRUCTURE.group(0, kind).parameters_per_unit for kind in ("ffn", "attention"))  # 96 and 1024
    most = 3 * 152 * channel
    kept = allocate(scores, STRUCTURE, Budget((most + 500) / STRUCTURE.block_parameters), Allocation())
    assert [len(kept[f"{i}.attention"]) for i in range(3)] == [4, 3, 4]
    assert kept["1.attention"] == [1, 2, 3]
    back = -(-(head - 500) // channel)  # channels that come back so that no more goes than was asked
    assert sum(len(kept[f"{i}.ffn"]) for i in range(3)) == 3 * 8 + back
    assert all(kept[f"{i}.ffn"] == list(range(160 - len(kept[f"{i}.ffn"]), 160)) for i in range(3))
