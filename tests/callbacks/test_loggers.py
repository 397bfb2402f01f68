"""Loggers get what the report gets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.loggers import keep_earlier_metrics, logger_of_command, metrics_of
from tests.callbacks.conftest import all_callbacks
from tests.report.sample import sample_report


class Recorder(Logger):
    """Any other logger: W&B's is called in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, {name: float(value) for name, value in metrics.items()}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, fit: Any) -> Any:
    folder = tmp_path_factory.mktemp("logged")
    callbacks = [c for c in all_callbacks()[:3] if not isinstance(c, CompressionReportCallback)]
    report = CompressionReportCallback(compare=["l2"], latency_seq_len=16, latency_repeats=1)
    loggers = [CSVLogger(folder, name="logs", version=""), Recorder(), TensorBoardLogger(folder, name="board", version="")]
    return fit(folder, [*callbacks, report], logger=loggers, log_every_n_steps=1)


def test_a_csv_logger_has_the_numbers_of_the_report(run: Any) -> None:
    report = json.loads((run.folder / "report.json").read_text())
    with (run.folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {key: float(value) for row in rows for key, value in row.items() if value}
    seen = 0
    for row in report["perplexity"]:
        behind = "" if row["method"] in ("adapruner", "dense") else f"/{row['method']}"
        assert logged[f"perplexity/{row['dataset']}/{row['window']}/{row['stage']}{behind}"] == row["value"]
        seen += 1
    assert seen > 8
    for which in ("dense", "pruned"):
        for name in ("parameters", "macs", "latency_ms", "weight_memory_gib"):
            assert logged[f"cost/{which}/{name}"] == report["cost"][which][name]
    assert logged["search/best_value"] == report["search"]["best_value"]
    assert logged["model/pruned_fraction"] == report["model"]["pruned_fraction"]
    trials = {int(row["step"]): float(row["search/value"]) for row in rows if row.get("search/value")}
    assert trials == {t["trial"]: t["value"] for t in report["search"]["history"] if t["value"] is not None}


def test_every_logger_gets_the_same(run: Any) -> None:
    with (run.folder / "logs" / "metrics.csv").open() as file:
        rows = [(int(row.pop("step")), {key: float(value) for key, value in row.items() if value}) for row in csv.DictReader(file)]
    recorded = [(step, {key: value for key, value in metrics.items()}) for step, metrics in run.trainer.loggers[1].logged]
    assert rows == recorded


def test_tensorboard_has_them_too(run: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.folder / "board"), size_guidance={"scalars": 0})
    board.Reload()
    shown = {(name, s.step): s.value for name in board.Tags()["scalars"] for s in board.Scalars(name)}
    recorded = {(key, step): value for step, metrics in run.trainer.loggers[1].logged for key, value in metrics.items()}
    assert {place: shown[place] for place in recorded} == pytest.approx(recorded, rel=1e-6)  # it keeps single precision
    assert any(name.startswith("search/") for name, _ in shown)
    assert any(name.startswith("perplexity/") for name, _ in shown)


def test_what_is_not_finite_or_no_number_is_left_out() -> None:
    report = sample_report()
    report["perplexity"][0]["value"] = None
    metrics = metrics_of(report)
    assert all(isinstance(value, float) for value in metrics.values())
    first = report["perplexity"][0]
    assert f"perplexity/{first['dataset']}/{first['window']}/dense" not in metrics
    assert metrics["zero_shot/piqa/acc_norm/recovered"] == 0.7802
    assert "model/uniform" not in metrics
    assert metrics_of({**report, "perplexity": None, "cost": None, "search": None, "recovery": None})["model/layers"] == 8


def test_only_a_csv_logger_moves_aside(tmp_path: Path) -> None:
    moved = logger_of_command(CSVLogger(tmp_path, name="logs", version=""), "test")
    assert Path(str(moved.log_dir)) == tmp_path / "logs" / "test"
    numbered = logger_of_command(CSVLogger(tmp_path, name="logs", version=3), "validate")
    assert Path(str(numbered.log_dir)) == tmp_path / "logs" / "version_3" / "validate"
    other = Recorder()
    assert logger_of_command(other, "test") is other


def test_metrics_of_earlier_attempts_stay(tmp_path: Path) -> None:
    for attempt in ("first", "second", "third"):
        logger = CSVLogger(tmp_path, name="logs", version="")
        keep_earlier_metrics([logger, Recorder()])
        logger.log_metrics({attempt: 1.0}, step=0)
        keep_earlier_metrics([logger])  # its own file stays where it is
        logger.save()
    names = {file.name: file.read_text().splitlines()[0] for file in (tmp_path / "logs").iterdir()}
    assert names == {"metrics-1.csv": "first,step", "metrics-2.csv": "second,step", "metrics.csv": "step,third"}
