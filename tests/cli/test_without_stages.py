"""``fit`` without recovery, report or export, by ``null``, and what brings a stage back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adapruner.cli import main
from adapruner.export.loading import load
from tests.spoilt import make_workspace


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs, and what a run with recovery makes of them, in ``recovered``."""
    folder = tmp_path_factory.mktemp("good")
    make_workspace(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "base.yaml", "--trainer.logger=false"])
    (folder / "run").rename(folder / "recovered")
    return folder


@pytest.fixture
def fit(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs ``fit`` in a copy of the good inputs; its run folder."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> Path:
        main(["fit", "--config", "base.yaml", *options])
        return tmp_path / "run"

    return run


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "options",
    [
        ("--recovery", "null"),
        ("--recovery=null", "--recovery.seed=3"),  # a comparison gives a seed to each of its runs
        ("--config", "{recovery: null}"),
        ("--trainer.max_steps", "0"),
        ("--trainer.max_steps=0", "--data.recovery=null"),
    ],
    ids=" ".join,
)
def test_without_recovery_it_prunes_refits_reports_and_exports(fit: Callable[..., Path], good: Path, options: tuple[str, ...]) -> None:
    run = fit(*options)
    report = read(run / "report.json")
    assert [row["stage"] for row in report["perplexity"]] == ["dense", "pruned", "reconstructed"]
    assert report["recovery"]["reconstruction"]["candidates"]
    assert report["recovery"]["lora"] is None
    # The same plan as with recovery.
    assert read(run / "plan.json")["hash"] == read(good / "recovered" / "plan.json")["hash"]
    assert not list(run.rglob("*.ckpt"))
    assert not any("lora" in name for name in load(run / "model").state_dict())
    assert (run / "report.html").exists()


def test_it_is_the_run_with_recovery_up_to_there(fit: Callable[..., Path], good: Path) -> None:
    run = fit("--recovery", "null")
    here, there = read(run / "report.json")["perplexity"], read(good / "recovered" / "report.json")["perplexity"]
    assert [row["stage"] for row in there] == ["dense", "pruned", "reconstructed", "recovered"]
    for mine, other in zip(here, there, strict=False):
        assert mine == other
    exported, trained = load(run / "model").state_dict(), load(good / "recovered" / "model").state_dict()
    assert exported.keys() == trained.keys()
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in exported.items())


def test_null_is_kept_in_the_configuration_that_is_written(fit: Callable[..., Path]) -> None:
    run = fit("--recovery=null", "--zero_shot=null", "--report=null", "--export=null")
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert [name for name in written if written[name] is None and name != "ckpt_path" and name != "weights_only"] == [
        "recovery",
        "zero_shot",
        "report",
        "export",
    ]
    assert (run / "plan.json").exists()
    assert not (run / "report.json").exists()
    assert not (run / "model").exists()
    shutil.copy(run / "config.yaml", "again.yaml")
    shutil.rmtree(run)
    main(["fit", "--config", "again.yaml"])
    assert (run / "plan.json").exists()
    assert not (run / "report.json").exists()


def test_without_checkpoints_nothing_is_kept(fit: Callable[..., Path]) -> None:
    run = fit("--checkpoint", "null")
    assert read(run / "report.json")["recovery"]["lora"]["steps"] == 1
    assert not list(run.rglob("*.ckpt"))


def test_an_option_behind_null_brings_the_stage_back(fit: Callable[..., Path]) -> None:
    run = fit("--recovery", "null", "--recovery.lora.r", "3", "--export", "null", "--report.compare=[]")
    assert read(run / "report.json")["recovery"]["lora"]["r"] == 3
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["recovery"]["lora"]["r"], written["recovery"]["lora"]["alpha"]) == (3, 16)  # the others are the defaults again
    assert written["export"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recovery=null", "--ckpt_path=a.ckpt"], "ckpt_path: expected none in a run without recovery, got a.ckpt"),
        (
            ["--trainer.max_steps=0", "--pruning.search.rerank.recovery_steps=10"],
            "pruning.search.rerank.recovery_steps: expected none in a run without recovery, got 10; leave it out, or give recovery",
        ),
        (["--recovery=null", "--export.adapters=folder"], "export.adapters: expected a run with LoRA recovery"),
        (["--config={data: null}"], "data: expected options, got null"),
    ],
)
def test_what_recovery_is_needed_for_is_one_line(
    fit: Callable[..., Path], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        fit(*options)
    assert f"adapruner: error: {message}" in capsys.readouterr().err
    assert not Path("run").exists()
