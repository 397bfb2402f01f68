"""The latency table: what it predicts, and how a measurement corrects it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from adapruner.errors import ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.costs.latency_table import LARGEST_CORRECTION, LatencyTable, correct
from tests.conftest import build_model

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
