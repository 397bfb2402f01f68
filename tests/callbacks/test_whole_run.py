"""The four callbacks in a plain Trainer over a foreign project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.export.loading import load
from adapruner.pruning.plan import read_plan
from adapruner.report.schema import validate_report
from tests.callbacks.conftest import all_callbacks, search_callback


@pytest.fixture(scope="module")
def report(finished: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((finished.folder / "report.json").read_text())
    return record


def test_the_report_has_every_key_that_others_read(report: dict[str, Any], finished: Any) -> None:
    validate_report(report)
    assert report["seed"] == 0
    assert {"torch", "lightning", "transformers", "adapruner"} <= set(report["versions"])
    model = report["model"]
    assert model["pruned_fraction_target"] == 0.3
    assert model["pruned_fraction"] == pytest.approx(0.3, abs=0.002)
    assert model["parameters_pruned"] == sum(p.numel() for p in finished.module.parameters()) < model["parameters_dense"]
    assert report["search"]["trials"] == 6
    assert report["search"]["seconds_total"] > 0
    assert report["search"]["best_value"] == finished.search.found.outcome.best.value
    for which, parameters in (("dense", model["parameters_dense"]), ("pruned", model["parameters_pruned"])):
        cost = report["cost"][which]
        assert cost["parameters"] == parameters
        assert cost["macs"] > 0
        assert cost["latency_ms"] > 0
    assert report["cost"]["pruned"]["macs"] < report["cost"]["dense"]["macs"]
    assert report["recovery"]["lora"]["steps"] == 4
    assert [step for step, _ in report["recovery"]["lora"]["history"]] == [1, 2, 3, 4]
    assert report["calibration"]["samples"] == 8
    assert report["search"]["judged"] == "NLL of the model after the local refit"
    assert report["search"]["candidates"][0]["trial"] == report["search"]["best_trial"]
    assert 1 <= report["calibration"]["effective_samples"] <= 8


def test_every_stage_is_measured_on_every_set(report: dict[str, Any]) -> None:
    rows = {(row["method"], row["stage"], row["dataset"], row["window"]): row["value"] for row in report["perplexity"]}
    assert len(rows) == len(report["perplexity"])
    stages = [("dense", "dense"), *(("adapruner", s) for s in ("pruned", "reconstructed", "recovered"))]
    stages += [(method, stage) for method in ("l2", "random", "best fixed") for stage in ("pruned", "reconstructed")]
    assert set(rows) == {(method, stage, "held out", window) for method, stage in stages for window in (16, 32)}
    assert all(value > 1 for value in rows.values())


def test_the_final_model_is_the_one_that_was_measured_and_exported(report: dict[str, Any], finished: Any) -> None:
    from transformers import LlamaForCausalLM

    final = finished.module.language
    assert isinstance(final, LlamaForCausalLM)  # no adapters are left
    windows = finished.data.evaluation_windows["held out", 16]
    recovered = next(r["value"] for r in report["perplexity"] if (r["stage"], r["window"]) == ("recovered", 16))
    assert evaluate_nll(final, windows).perplexity == pytest.approx(recovered)
    assert report["export"]["path"] == str(finished.folder / "model")
    assert report["export"]["class"] in ("LlamaForCausalLM", "PrunedLlamaForCausalLM")
    assert report["export"]["max_abs_logit_difference"] < 1e-4
    loaded = load(finished.folder / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded(windows.input_ids).logits, final.eval()(windows.input_ids).logits, rtol=1e-4, atol=1e-4)


def test_the_run_folder_has_what_it_should(finished: Any) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    expected = {"plan.json", "trials.csv", "study.journal", "statistics.safetensors", "report.json", "report.html", "model"}
    assert expected <= names
    assert not [name for name in names if name.endswith(".tmp") or "write-test" in name]
    assert read_plan(finished.folder / "plan.json").hash == finished.search.plan.hash
    assert finished.search.plan.widths("ffn") == finished.widths


def test_the_same_seed_in_another_folder_is_the_same_run(finished: Any, fit: Any, tmp_path: Path) -> None:
    torch.manual_seed(7)  # what came before does not matter
    again = fit(tmp_path, [search_callback(), all_callbacks()[1]])
    assert again.search.plan.hash == finished.search.plan.hash
    for name, value in again.module.state_dict().items():
        torch.testing.assert_close(value, finished.module.state_dict()[name], msg=name)


def test_again_over_the_same_folder_reuses_and_says_so(finished: Any, fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    again = fit(finished.folder, [search_callback()], max_steps=1)
    said = capsys.readouterr().out
    assert "takes the statistics of 8 calibration samples from" in said
    assert "took 6 of 6 trials from the study in" in said
    assert again.search.plan.hash == finished.search.plan.hash


class _Failing(Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        raise RuntimeError("in training")


def test_a_run_that_fails_writes_no_report(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in training"):
        fit(tmp_path, [search_callback(), CompressionReportCallback(), _Failing()])
    assert not (tmp_path / "report.json").exists()
