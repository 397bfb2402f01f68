"""The latency table: exact where time is a formula, sane on this machine, and nothing is changed by measuring."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, ModelError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.costs import latency_table
from adapruner.pruning.costs.latency_table import LARGEST_CORRECTION, LatencyTable, correct, fit_line, measure_latency_table
from tests.conftest import build_model
from tests.oracles.surgery import assert_same, snapshot


def test_line_through_exact_points() -> None:
    assert fit_line([(x, 0.5 * x + 2.0) for x in (4, 8, 12, 16)]) == (0.5, 2.0)


def test_line_through_noisy_points_is_the_least_squares_one() -> None:
    points = [(1, 2.1), (2, 2.8), (3, 4.2), (4, 4.9)]
    design = torch.tensor([[x, 1.0] for x, _ in points], dtype=torch.float64)
    expected = torch.linalg.lstsq(design, torch.tensor([y for _, y in points], dtype=torch.float64)[:, None]).solution.flatten()
    torch.testing.assert_close(torch.tensor(fit_line(points), dtype=torch.float64), expected)


def test_line_never_goes_below_zero() -> None:
    assert fit_line([(1, 5.0), (2, 4.0)]) == (0.0, 4.5)
    slope, constant = fit_line([(1, 1.0), (2, 4.0)])  # the free line starts at -2
    assert constant == 0.0
    assert slope == pytest.approx((1 * 1.0 + 2 * 4.0) / (1 + 4))


def test_a_device_of_formulas_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def formula(calls: dict[tuple[str, int], Callable[[], Any]], repeats: int, threads: int) -> dict[tuple[str, int], float]:
        asked.append((sorted(calls), repeats, threads))
        rates = {"attention": 0.75, "ffn": 0.125, "whole": 0.0}
        return {(kind, units): 1.0 + rates[kind] * units + (40.0 if kind == "whole" else 0.0) for kind, units in calls}

    monkeypatch.setattr(latency_table, "_median_ms", formula)
    model = build_model("llama")
    table = measure_latency_table(model, trace_structure(model), seq_len=16, batch_size=2, repeats=3, threads=1)
    assert table.per_unit_ms == pytest.approx({"attention": 0.75, "ffn": 0.125})
    assert (table.whole_ms, table.seq_len, table.batch_size, table.device) == (41.0, 16, 2, "CPU with 1 thread, float32")
    widths = [("attention", n) for n in (1, 2, 3, 4)] + [("ffn", n) for n in (6, 12, 18, 24)]
    assert asked == [([*widths, ("whole", 0)], 3, 1)]


def test_a_width_that_makes_no_difference_still_costs_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "_median_ms", lambda calls, repeats, threads: dict.fromkeys(calls, 2.0))
    model = build_model("llama")
    structure = trace_structure(model)
    table = measure_latency_table(model, structure, seq_len=16)
    assert sum(g.units * table.per_unit_ms[g.kind] for g in structure.groups) == pytest.approx(0.001 * table.whole_ms)


def test_units_never_take_more_than_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "_median_ms", lambda calls, repeats, threads: {key: 1.0 + 2.0 * key[1] for key in calls})
    model = build_model("llama")
    structure = trace_structure(model)
    table = measure_latency_table(model, structure, seq_len=16)
    assert sum(g.units * table.per_unit_ms[g.kind] for g in structure.groups) == pytest.approx(table.whole_ms)
    assert table.per_unit_ms["ffn"] == pytest.approx(table.per_unit_ms["attention"])


@pytest.mark.parametrize("family", ["llama_gqa_4", "llama_biased", "qwen3"])
def test_cut_copies_are_what_surgery_makes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy's output is that of the whole block when the units it lost are silenced."""
    outputs: dict[tuple[str, int], Any] = {}

    def run(calls: dict[tuple[str, int], Callable[[], Any]], repeats: int, threads: int) -> dict[tuple[str, int], float]:
        outputs.update({key: call() for key, call in calls.items()})
        return {key: 1.0 + key[1] for key in calls}

    monkeypatch.setattr(latency_table, "_median_ms", run)
    model = build_model(family)
    structure = trace_structure(model)
    for group in structure.groups[:2]:
        measure_latency_table(model, structure, seq_len=7, fractions=(1.0, 0.5))
        dense, half = (outputs[group.kind, units] for units in (group.units, group.units // 2))
        with torch.no_grad():  # silence the second half in the model itself
            weight = model.get_submodule(group.output.module).weight
            saved = weight.clone()
            weight[:, group.channels // 2 :] = 0.0
        measure_latency_table(model, structure, seq_len=7, fractions=(1.0, 0.5))
        silenced = outputs[group.kind, group.units]
        with torch.no_grad():
            weight.copy_(saved)
        if isinstance(dense, tuple):  # attention gives its weights as well
            dense, half, silenced = dense[0], half[0], silenced[0]
        torch.testing.assert_close(half, silenced)
        assert not torch.allclose(half, dense)


def test_measuring_on_this_machine_changes_nothing() -> None:
    model = build_model("llama_gqa_2").train()
    structure, before, state = trace_structure(model), snapshot(model), torch.get_rng_state()
    table = measure_latency_table(model, structure, seq_len=8, repeats=2, threads=1)
    assert_same(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(table.per_unit_ms) == {"attention", "ffn"}
    assert all(0 < value < math.inf for value in [table.whole_ms, *table.per_unit_ms.values()])


def test_more_tokens_than_positions_are_refused() -> None:
    model = build_model("llama")
    with pytest.raises(ConfigurationError, match="seq_len: expected from 1 to the model's 64 positions, got 65"):
        measure_latency_table(model, trace_structure(model), seq_len=65)


def test_a_block_that_is_never_called_is_refused() -> None:
    model = build_model("llama")
    structure = trace_structure(model)
    model.model.layers[0].mlp.forward = None
    model.model.layers[0].forward = lambda hidden_states, *_, **__: hidden_states
    with pytest.raises(ModelError, match=r"model: expected a forward to call model\.layers\.0\.(mlp|self_attn), got none"):
        measure_latency_table(model, structure, seq_len=8)


TABLE = LatencyTable({"attention": 0.5, "ffn": 0.25}, whole_ms=30.0, seq_len=128, batch_size=2, device="none")


def test_prediction_takes_off_what_goes() -> None:
    structure = trace_structure(build_model("llama"))
    kept = {g.name: list(range(g.units)) for g in structure.groups}
    assert TABLE.predict(kept, structure) == 30.0
    kept["1.attention"], kept["2.ffn"] = [0, 3], [5]
    assert TABLE.predict(kept, structure) == 30.0 - 2 * 0.5 - 23 * 0.25


def test_the_corrected_line_goes_through_the_measurement() -> None:
    corrected = correct(TABLE, predicted=20.0, measured=22.0)
    assert corrected.per_unit_ms == pytest.approx({"attention": 0.4, "ffn": 0.2})
    assert corrected.whole_ms == 30.0
    assert correct(TABLE, 20.0, 20.0) == TABLE


@pytest.mark.parametrize(("measured", "factor"), [(31.0, 1 / LARGEST_CORRECTION), (0.1, 2.99), (29.9, 1 / LARGEST_CORRECTION)])
def test_a_correction_is_bounded(measured: float, factor: float) -> None:
    assert correct(TABLE, 20.0, measured).per_unit_ms["ffn"] == pytest.approx(0.25 * factor)


def test_the_record_survives_json() -> None:
    assert LatencyTable(**json.loads(json.dumps(asdict(TABLE)))) == TABLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"whole_ms": 0.0}, r"latency\.whole_ms: expected a positive number of ms, got 0\.0"),
        ({"per_unit_ms": {"ffn": -1.0}}, r"latency\.per_unit_ms\.ffn: expected a positive number of ms, got -1\.0"),
        ({"per_unit_ms": {"ffn": math.nan}}, r"latency\.per_unit_ms\.ffn: expected a positive number of ms, got nan"),
    ],
)
def test_tables_that_are_not_positive_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(TABLE, **changes)


def test_corrections_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="measured: expected a positive number of ms, got 0"):
        correct(TABLE, 20.0, 0.0)
    with pytest.raises(ConfigurationError, match="predicted: expected less than the dense model's 30 ms, got 30"):
        correct(TABLE, 30.0, 20.0)
