"""Scores of a whole run in its report, and of an exported folder with ``test``."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from adapruner.callbacks.evaluation_table import EvaluationTableCallback
from adapruner.callbacks.zero_shot_evaluation import ZeroShotEvaluationCallback
from adapruner.errors import ConfigurationError
from adapruner.evaluation.zero_shot import describe_zero_shot, load_tasks, score_tasks
from adapruner.export.loading import load
from adapruner.report.schema import validate_report
from tests.callbacks.conftest import ForeignData, ForeignModule, all_callbacks, foreign_trainer
from tests.local_tasks import COLOURS, QUESTIONS, write_tasks
from tests.tiny import tiny_llama, word_tokenizer

TASKS = [QUESTIONS, COLOURS]
FFN = 480


class WithTokenizer(ForeignModule):
    """What the callback asks of a foreign project."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = word_tokenizer()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval")
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def run(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Search, surgery, recovery, scores, report and export; the sweep over batch and length, too."""
    folder = tmp_path_factory.mktemp("run")
    callbacks = all_callbacks()
    report = callbacks[2]
    report.config = replace(report.config, speed_batches=[1, 2], speed_seq_lens=[8, 16])
    scoring = ZeroShotEvaluationCallback(TASKS, task_folder=str(tasks))
    callbacks.insert(2, scoring)
    module = WithTokenizer()
    foreign_trainer(folder, callbacks).fit(module, datamodule=ForeignData())
    return SimpleNamespace(folder=folder, scoring=scoring, module=module, record=json.loads((folder / "report.json").read_text()))


def test_the_report_has_every_stage_task_and_metric(run: Any, tasks: Path) -> None:
    validate_report(run.record)
    rows = run.record["zero_shot"]["rows"]
    expected = [(QUESTIONS, "acc"), (QUESTIONS, "acc_norm"), (COLOURS, "acc")]
    assert [(r["stage"], r["task"], r["metric"]) for r in rows] == [
        (stage, *pair) for stage in ("dense", "reconstructed", "recovered") for pair in expected
    ]
    assert {(r["documents"], r["shots"]) for r in rows} == {(23, 0)}
    assert run.record["zero_shot"]["protocol"].startswith("lm-eval ")
    assert "Zero-shot tasks" in (run.folder / "report.html").read_text()


def test_each_stage_is_scored_as_the_model_was_then(run: Any, tasks: Path) -> None:
    loaded = load_tasks(TASKS, tasks)
    assert run.scoring.scores["dense"] == score_tasks(tiny_llama(intermediate_size=FFN), word_tokenizer(), loaded)
    assert run.scoring.scores["recovered"] == score_tasks(run.module.language, word_tokenizer(), loaded)
    exported = load(run.folder / "model")
    assert run.scoring.scores["recovered"] == score_tasks(exported, word_tokenizer(), loaded)


def test_the_report_sweeps_speed_where_it_is_asked_to(run: Any) -> None:
    cost = run.record["cost"]
    rows = cost["sweep"]["rows"]
    assert [(r["batch"], r["seq_len"]) for r in rows] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert all(r["dense"]["decode_tokens_per_s"] > 0 and r["pruned"]["prefill_ms"] > 0 for r in rows)
    ideal = [r["ideal"] for r in rows if r["seq_len"] == 16]
    assert ideal == pytest.approx([cost["pruned"]["macs"] / cost["dense"]["macs"]] * 2)
    assert cost["dense"]["peak_memory_gib"] is None
    assert cost["pruned"]["prefill_energy_j"] is None


def test_every_set_has_its_protocol(run: Any) -> None:
    said = {(p["dataset"], p["window"]): p["words"] for p in run.record["protocols"]}
    assert set(said) == {("held out", 16), ("held out", 32)}
    assert "non-overlapping windows of 32 tokens" in said["held out", 32]
    assert said["held out", 32] in (run.folder / "report.html").read_text()


class Measurable(WithTokenizer):
    """Can be tested, too."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.language(**batch, use_cache=False)

    def test_dataloader(self) -> Any:
        return ForeignData().train_dataloader()


def test_the_command_test_scores_whatever_the_module_holds(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scoring = ZeroShotEvaluationCallback([COLOURS], limit=5, task_folder=str(tasks), model_attribute="language")
    logger = CSVLogger(tmp_path, name="logs", version="")
    foreign_trainer(tmp_path, [scoring], logger=logger).test(Measurable(), verbose=False)
    expected = score_tasks(tiny_llama(intermediate_size=FFN), word_tokenizer(), load_tasks([COLOURS], tasks), limit=5)
    assert scoring.tested == expected
    assert scoring.report_sections(None) == {}  # of a fit alone
    (score,) = expected
    assert score.value is not None
    out = capsys.readouterr().out
    assert f"adapruner: zero-shot, the model: {COLOURS} acc {score.value:.4f} (stderr {score.stderr:.4f})\n" in out
    assert f"adapruner: {describe_zero_shot(expected, 5, 8)}\n" in out
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row[f"test/zero_shot/{COLOURS}/acc"]) == score.value
    scoring.model_attribute = "lm"
    refused = r"zero_shot.model_attribute: expected the language model in Measurable.lm, got none; name it"
    with pytest.raises(ConfigurationError, match=refused):
        foreign_trainer(tmp_path, [scoring]).test(Measurable(), verbose=False)


@pytest.mark.parametrize("words", ["the export small (plan 5eed)", "big pruned by the plan 5eed, neither reconstructed nor recovered"])
def test_scores_of_test_have_the_name_that_the_table_of_perplexities_has(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    scoring = ZeroShotEvaluationCallback([COLOURS], limit=2, task_folder=str(tasks), model_attribute="language")
    foreign_trainer(tmp_path, [scoring, EvaluationTableCallback(words)]).test(Measurable(), verbose=False)
    out = capsys.readouterr().out
    assert f"adapruner: scores {words} on {COLOURS}\n" in out
    assert f"adapruner: zero-shot, {words}: {COLOURS} acc " in out
    assert scoring.scores == {}


def test_without_tasks_nothing_is_done_and_no_stage_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import adapruner.callbacks.zero_shot_evaluation as under_test

    monkeypatch.setattr(under_test, "load_tasks", lambda *_: pytest.fail("nothing is loaded"))
    scoring = ZeroShotEvaluationCallback()
    foreign_trainer(tmp_path, [scoring], max_steps=1).fit(ForeignModule(), datamodule=ForeignData())
    assert scoring.report_sections(None) == {}
    assert scoring.knows_stage(Trainer(accelerator="cpu", logger=False), "reconstructed")
    assert not ZeroShotEvaluationCallback([COLOURS]).knows_stage(Trainer(accelerator="cpu", logger=False), "reconstructed")


def test_what_would_fail_late_is_refused_before_the_search(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("limit", "batch_size"):
        with pytest.raises(ConfigurationError, match=f"zero_shot.{name}: expected 1 or more, got 0"):
            ZeroShotEvaluationCallback(**{name: 0})
    monkeypatch.setattr(torch.nn.Module, "forward", lambda *_: pytest.fail("no model is run"), raising=False)
    for module, options, message in (
        (ForeignModule(), {"tasks": TASKS}, "zero_shot.tasks: expected a module with a tokenizer, got ForeignModule"),
        (WithTokenizer(), {"tasks": [*TASKS, QUESTIONS]}, "zero_shot.tasks: expected one or more names, each once"),
        (WithTokenizer(), {"tasks": TASKS, "num_fewshot": -1}, "zero_shot.num_fewshot: expected 0 or more, got -1"),
    ):
        callbacks = all_callbacks()
        callbacks.insert(2, ZeroShotEvaluationCallback(task_folder=str(tasks), **options))
        with pytest.raises(ConfigurationError, match=message):
            foreign_trainer(tmp_path / "run", callbacks).fit(module, datamodule=ForeignData())
