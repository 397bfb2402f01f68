"""``fit --recovery.distillation.weight 0.5``: through the report, a kill, another weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.cli import main
from adapruner.export.loading import load
from tests.cli.command_line import interrupted_at_step
from tests.spoilt import make_workspace

STEPS = ("--trainer.max_steps=4", "--checkpoint.every_n_steps=1", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=9")
DISTIL = ("--recovery.distillation.weight=0.5", "--recovery.distillation.temperature=2", "--recovery.distillation.top_k=8")


def fit(folder: str, *options: str) -> Any:
    run = (f"--trainer.default_root_dir={folder}", f"--trainer.logger.init_args.save_dir={folder}", f"--export.folder={folder}/model")
    main(["fit", "--config", "base.yaml", *STEPS, *DISTIL, *run, *options])
    return load(f"{folder}/model").state_dict()


@pytest.mark.slow  # four runs
def test_a_killed_fit_goes_on_and_the_report_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    unbroken = fit("whole")
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["recovery"]["lora"]["distillation"] == {"weight": 0.5, "temperature": 2.0, "top_k": 8}
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "50 % of the loss is the divergence from the dense model's 8 most likely tokens at temperature 2" in " ".join(page.split())
    with interrupted_at_step(2, monkeypatch), pytest.raises(SystemExit, match=r"^130$"):
        fit("killed")
    capsys.readouterr()
    resumed = fit("killed")
    said = capsys.readouterr().out
    assert "takes what the teacher says of" in said
    assert "recovery goes on from" in said
    for name, value in unbroken.items():
        assert torch.equal(resumed[name], value), name
    other = fit("killed", "--recovery.distillation.weight=0")
    assert "recovery starts anew" in capsys.readouterr().out
    assert any(not torch.equal(other[name], value) for name, value in unbroken.items())
