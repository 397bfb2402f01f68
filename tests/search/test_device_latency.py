"""A latency budget met by a clock that one can compute, and the table that a resumed search reads again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapruner.models.latency import LatencyTable
from adapruner.pruning.budget import Budget
from adapruner.pruning.problem import PruningProblem
from adapruner.pruning.recipe import Recipe
from adapruner.search import device_latency
from adapruner.search.device_latency import meet_on_device, read_or_measure_table

TABLE = LatencyTable({"attention": 0.5, "ffn": 0.004}, 10.0, 16, 1, "a clock in a test")


def test_the_plan_meets_what_the_clock_says(model: Any, problem: PruningProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real price of a channel is twice the table's, and the clock runs at half speed: only ratios may count."""

    def clock(models: dict[str, Any], seq_len: int, batch: int, repeats: int) -> Any:
        widths = [layer.mlp.down_proj.in_features for layer in models["model"].model.layers]
        heads = [layer.self_attn.o_proj.in_features // 16 for layer in models["model"].model.layers]
        ms = 10.0 - 0.5 * (2 * len(heads) - sum(heads)) - 0.008 * (160 * len(widths) - sum(widths))
        return {"model": SimpleNamespace(prefill_ms=2 * ms)}

    monkeypatch.setattr(device_latency, "measure_latency", clock)
    timed = replace(problem, budget=Budget(latency_ms=8.0, seq_len=16), latency=TABLE)
    plan, choice = meet_on_device(model, timed, Recipe({"l2": 1.0}), TABLE)
    assert choice.measured_ms == pytest.approx(8.0, rel=0.05)  # a head of this model alone is worth 5 %
    assert 1 < choice.rounds <= 3  # the first plan, by the table, saves up to twice what was asked for
    assert plan.kept == choice.kept
    assert plan.provenance["latency"]["measured_ms"] == choice.measured_ms
    assert plan.budget["latency_ms"] == 8.0
    for group in problem.structure.groups:
        assert model.get_submodule(group.output.module).weight.shape[1] == group.channels


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
