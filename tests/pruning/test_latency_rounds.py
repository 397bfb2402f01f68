"""Measured rounds, on devices made of formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.latency import LatencyTable
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.latency_rounds import meet_latency
from tests.conftest import build_model
from tests.pruning.test_allocation import draw_scores

ANATOMY = trace_structure(build_model("llama", intermediate_size=160))
SCORES = draw_scores(ANATOMY)
TABLE = LatencyTable({"attention": 1.0, "ffn": 0.02}, whole_ms=40.0, seq_len=128, batch_size=1, device="formula")
BUDGET = Budget(latency_ms=32.0)


def choose(costs: UnitCosts) -> dict[str, list[int]]:
    return allocate(SCORES, ANATOMY, BUDGET, Allocation(), costs)


def device(saves: float, curve: float = 0.0) -> Callable[[dict[str, list[int]]], float]:
    """A device that saves ``saves`` times what the table says, and less the more goes."""

    def measure(kept: dict[str, list[int]]) -> float:
        said = TABLE.whole_ms - TABLE.predict(kept, ANATOMY)
        return TABLE.whole_ms - saves * said * (1 - curve * said)

    return measure


def test_a_table_that_is_right_needs_one_round() -> None:
    choice = meet_latency(BUDGET, ANATOMY, TABLE, choose, device(1.0))
    assert choice.rounds == 1
    assert choice.measured_ms == pytest.approx(32.0, abs=0.04)
    assert choice.kept == choose(BUDGET.costs(ANATOMY, latency=TABLE))


@pytest.mark.parametrize("saves", [0.7, 1.6])
def test_a_wrong_slope_is_mended_in_two(saves: float) -> None:
    choice = meet_latency(BUDGET, ANATOMY, TABLE, choose, device(saves), within=0.005)
    assert choice.rounds == 2
    assert choice.measured_ms == pytest.approx(32.0, abs=0.05)
    assert choice.table.per_unit_ms["ffn"] == pytest.approx(saves * 0.02)


def test_a_bent_device_comes_nearer_with_every_round() -> None:
    misses = [
        abs(meet_latency(BUDGET, ANATOMY, TABLE, choose, device(1.0, 0.02), rounds=n, within=0.0).measured_ms - 32.0) for n in (1, 2, 3)
    ]
    assert misses[0] > misses[1] > misses[2]
    assert misses[2] < 0.01 * 32.0


def test_a_device_that_cannot_reach_it_gives_the_nearest() -> None:
    choice = meet_latency(BUDGET, ANATOMY, TABLE, choose, device(0.3))
    assert choice.measured_ms == pytest.approx(40.0 - 0.3 * 8.0, abs=0.05)
    assert choice.rounds == 1
    with pytest.raises(BudgetError, match=r"latency_ms: expected a target from 21\.88 to 40 ms per forward"):
        meet_latency(Budget(latency_ms=2.0), ANATOMY, TABLE, choose, device(1.0))


def test_other_budgets_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"budget\.of: expected 'latency' to measure plans, got 'block'"):
        meet_latency(Budget(0.2), ANATOMY, TABLE, choose, device(1.0))
    with pytest.raises(ConfigurationError, match="rounds: expected 1 or more, got 0"):
        meet_latency(BUDGET, ANATOMY, TABLE, choose, device(1.0), rounds=0)
