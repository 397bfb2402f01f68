"""``fit --recovery.time_budget 3s --recovery.early_stop.every_n_steps 20``: to the report, and the same command once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.cli import main
from adapruner.export.loading import load
from tests.spoilt import make_workspace

UNBOUNDED = ("--trainer.max_steps=-1", "--trainer.max_epochs=-1")
LOOKS = ("--recovery.early_stop.every_n_steps=5", "--recovery.early_stop.patience=1000", "--recovery.lora.also_train=[norms]")


@pytest.mark.slow  # a clock that is not made up
def test_a_run_of_so_much_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)

    def fit() -> tuple[dict[str, Any], str]:
        main(["fit", "--config", "base.yaml", "--recovery.time_budget=3s", *UNBOUNDED, *LOOKS])
        return json.loads((tmp_path / "run" / "report.json").read_text())["recovery"]["lora"], capsys.readouterr().out

    section, said = fit()
    assert section["time_budget"] == 3.0
    assert section["ended_by"] == "time budget"
    assert 2.0 < section["seconds"] < 6.0
    assert section["steps"] == section["history"][-1][0] == section["early_stop"]["looks"][-1][0]
    assert "3.0 s of training hold about" in said
    assert "ended by its time budget" in said
    page = " ".join((tmp_path / "run" / "report.html").read_text().split())
    assert "given 3.0 s, ended by its time budget." in page
    assert f"best behind step {section['early_stop']['best_step']:,}: " in page
    before = load(tmp_path / "run" / "model").state_dict()
    (tmp_path / "run" / "finished.json").unlink()  # else nothing is done again
    again, said = fit()
    assert again == section
    assert "recovery goes on from" in said
    assert all((before[name] == value).all() for name, value in load(tmp_path / "run" / "model").state_dict().items())


def test_the_export_of_a_judged_run_has_its_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    judged = ("--recovery.early_stop.every_n_steps=2", "--recovery.early_stop.patience=9", "--report.compare_recovered=false")
    main(["fit", "--config", "base.yaml", "--trainer.max_steps=4", "--model.optimizer=SGD", "--model.optimizer.lr=50", *judged])
    found = json.loads((tmp_path / "run" / "report.json").read_text())["recovery"]["lora"]
    best = found["early_stop"]["best_step"]
    assert best < found["steps"] == 4  # such a rate ruins the model
    main(["export", "run", "out"])
    assert f"the weights of step {best} from" in capsys.readouterr().out
    run, out = (load(tmp_path / place).state_dict() for place in ("run/model", "out"))
    assert run.keys() == out.keys()
    for name, value in run.items():
        torch.testing.assert_close(out[name], value, msg=name)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    main(["export", "run", "step4", "--checkpoint", str(last)])
    assert "the weights of step 4 from" in capsys.readouterr().out
    assert any(not torch.allclose(value, run[name]) for name, value in load(tmp_path / "step4").state_dict().items())


def test_a_judged_run_that_goes_on_without_looks_is_exported_as_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    fit = ["fit", "--config", "base.yaml", "--model.optimizer=SGD", "--model.optimizer.lr=50", "--report.compare_recovered=false"]
    main([*fit, "--trainer.max_steps=4", "--recovery.early_stop.every_n_steps=2", "--recovery.early_stop.patience=9"])
    judged = (tmp_path / "run" / "checkpoints" / "last.ckpt").rename(tmp_path / "judged.ckpt")
    main([*fit, "--trainer.max_steps=6", "--ckpt_path", str(judged)])
    main(["export", "run", "out"])
    run, out = (load(tmp_path / place).state_dict() for place in ("run/model", "out"))
    for name, value in run.items():
        torch.testing.assert_close(out[name], value, msg=name)
