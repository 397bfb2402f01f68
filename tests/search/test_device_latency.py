"""A latency budget met by clocks and devices that one can compute, and the table that a resumed search reads again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapruner.errors import BudgetError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem
from adapruner.pruning.recipe import Recipe
from adapruner.search import device_latency
from adapruner.search.device_latency import measure_table, meet_by_rounds, meet_latency, meet_on_device, read_or_measure_table
from tests.conftest import build_model
from tests.oracles.surgery import assert_same, plan_of, snapshot
from tests.pruning.allocation.test_allocation import draw_scores

TABLE = LatencyTable({"attention": 0.5, "ffn": 0.004}, 10.0, 16, 1, "a clock in a test")
STRUCTURE = trace_structure(build_model("llama", intermediate_size=160))
SCORES = draw_scores(STRUCTURE)
FORMULA = LatencyTable({"attention": 1.0, "ffn": 0.02}, whole_ms=40.0, seq_len=128, batch_size=1, device="formula")
BUDGET = Budget(latency_ms=32.0)


def test_the_plan_meets_what_the_clock_says(model: Any, problem: PruningProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real price of a channel is twice the table's, and the clock runs at half speed: only ratios may count."""

    def clock(models: dict[str, Any], seq_len: int, batch: int, repeats: int) -> Any:
        widths = [layer.mlp.down_proj.in_features for layer in models["model"].model.layers]
        heads = [layer.self_attn.o_proj.in_features // 16 for layer in models["model"].model.layers]
        ms = 10.0 - 0.5 * (2 * len(heads) - sum(heads)) - 0.008 * (160 * len(widths) - sum(widths))
        return {"model": SimpleNamespace(prefill_ms=2 * ms)}

    monkeypatch.setattr(device_latency, "measure_latency", clock)
    timed = replace(problem, budget=Budget(latency_ms=8.0, seq_len=16), latency=TABLE)
    choice = meet_on_device(model, timed, Recipe({"l2": 1.0}), TABLE)
    assert choice.measured_ms == pytest.approx(8.0, rel=0.05)  # a head of this model alone is worth 5 %
    assert 1 < choice.rounds <= 3  # the first plan, by the table, saves up to twice what was asked for
    assert choice.plan.budget["latency_ms"] == 8.0
    met = meet_latency(model, timed, choice.plan, Recipe({"l2": 1.0}), None, {})
    assert met.kept == choice.plan.kept
    assert met.provenance["latency"]["measured_ms"] == choice.measured_ms
    for group in problem.structure.groups:
        assert model.get_submodule(group.output.module).weight.shape[1] == group.channels


def a_clock(attention: float, ffn: float, whole: float = 40.0) -> Callable[..., Any]:
    """Milliseconds by a formula of the widths that the model has when it is timed."""

    def clock(models: dict[str, Any], seq_len: int, batch: int, repeats: int) -> Any:
        layers = models["model"].model.layers
        heads = sum(4 - layer.self_attn.q_proj.out_features // 8 for layer in layers)
        channels = sum(160 - layer.mlp.down_proj.in_features for layer in layers)
        return {"model": SimpleNamespace(prefill_ms=whole - attention * heads - ffn * channels)}

    return clock


def test_a_device_of_formulas_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_latency, "measure_latency", a_clock(0.75, 0.0625))
    model = build_model("llama", intermediate_size=160)
    table = measure_table(model, STRUCTURE, seq_len=16)
    assert table.per_unit_ms == pytest.approx({"attention": 0.75, "ffn": 0.0625})
    assert (table.whole_ms, table.seq_len, table.batch_size) == (40.0, 16, 1)
    assert table.device.endswith("float32")


def test_a_width_that_makes_no_difference_still_costs_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_latency, "measure_latency", a_clock(0.0, 0.0))
    table = measure_table(build_model("llama", intermediate_size=160), STRUCTURE, seq_len=16)
    assert sum(g.units * table.per_unit_ms[g.kind] for g in STRUCTURE.groups) == pytest.approx(0.001 * table.whole_ms)


def test_units_never_take_more_than_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_latency, "measure_latency", a_clock(1.0, 0.15, whole=60.0))
    table = measure_table(build_model("llama", intermediate_size=160), STRUCTURE, seq_len=16)
    assert sum(g.units * table.per_unit_ms[g.kind] for g in STRUCTURE.groups) == pytest.approx(table.whole_ms)


def test_measuring_on_this_machine_changes_nothing() -> None:
    model = build_model("llama_gqa_2").train()
    structure, before, state = trace_structure(model), snapshot(model), torch.get_rng_state()
    table = measure_table(model, structure, seq_len=8)
    assert_same(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(table.per_unit_ms) == {"attention", "ffn"}
    assert all(0 < value < math.inf for value in [table.whole_ms, *table.per_unit_ms.values()])


def test_a_resumed_search_has_the_same_prices(tmp_path: Path) -> None:
    file, calls = tmp_path / "latency.json", []

    def measure() -> LatencyTable:
        calls.append(1)
        return replace(TABLE, whole_ms=10.0 + len(calls))

    first = read_or_measure_table(file, "a", measure, write=True)
    assert read_or_measure_table(file, "a", measure, write=True) == first
    assert read_or_measure_table(file, "b", measure, write=True).whole_ms == 12.0  # another model or length
    file.write_text("{torn")
    assert read_or_measure_table(file, "b", measure, write=True).whole_ms == 13.0


def choose(costs: UnitCosts) -> PruningPlan:
    return plan_of(STRUCTURE, allocate(SCORES, STRUCTURE, BUDGET, Allocation(), costs))


def device(saves: float, curve: float = 0.0) -> Callable[[PruningPlan], float]:
    """A device that saves ``saves`` times what the table says, and less the more goes."""

    def measure(plan: PruningPlan) -> float:
        said = FORMULA.whole_ms - FORMULA.predict(plan.kept, STRUCTURE)
        return FORMULA.whole_ms - saves * said * (1 - curve * said)

    return measure


def test_a_table_that_is_right_needs_one_round() -> None:
    choice = meet_by_rounds(BUDGET, STRUCTURE, FORMULA, choose, device(1.0))
    assert choice.rounds == 1
    assert choice.measured_ms == pytest.approx(32.0, abs=0.04)
    assert choice.plan == choose(BUDGET.costs(STRUCTURE, latency=FORMULA))


@pytest.mark.parametrize("saves", [0.7, 1.6])
def test_a_wrong_slope_is_mended_in_two(saves: float) -> None:
    choice = meet_by_rounds(BUDGET, STRUCTURE, FORMULA, choose, device(saves), within=0.005)
    assert choice.rounds == 2
    assert choice.measured_ms == pytest.approx(32.0, abs=0.05)
    assert choice.table.per_unit_ms["ffn"] == pytest.approx(saves * 0.02)


def test_a_bent_device_comes_nearer_with_every_round() -> None:
    misses = [
        abs(meet_by_rounds(BUDGET, STRUCTURE, FORMULA, choose, device(1.0, 0.02), rounds=n, within=0.0).measured_ms - 32.0)
        for n in (1, 2, 3)
    ]
    assert misses[0] > misses[1] > misses[2]
    assert misses[2] < 0.01 * 32.0


def test_a_device_that_cannot_reach_it_gives_the_nearest() -> None:
    choice = meet_by_rounds(BUDGET, STRUCTURE, FORMULA, choose, device(0.3))
    assert choice.measured_ms == pytest.approx(40.0 - 0.3 * 8.0, abs=0.05)
    assert choice.rounds == 1
    with pytest.raises(BudgetError, match=r"latency_ms: expected a target from 21\.88 to 40 ms per forward"):
        meet_by_rounds(Budget(latency_ms=2.0), STRUCTURE, FORMULA, choose, device(1.0))
