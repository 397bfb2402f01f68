"""The command line on two processes, which Lightning starts: from search to report and export, and the same command once more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.processes import ROOT, clean_environment
from tests.spoilt import make_workspace

pytestmark = pytest.mark.slow  # four processes are started

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
MORE = ["--trainer.max_steps", "3", "--checkpoint.every_n_steps", "1"]


def fit(folder: Path) -> str:
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "base.yaml", *TWO, *MORE]
    done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_two_processes_come_to_the_end_and_do_nothing_twice(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    fit(tmp_path)
    run = tmp_path / "run"
    first = json.loads((run / "report.json").read_text())
    assert first["search"]["world_size"] == 2
    assert first["search"]["trials"] == 2
    measured = {(row["method"], row["stage"]) for row in first["perplexity"]}
    assert measured >= {("adapruner", "reconstructed"), ("adapruner", "recovered")}
    assert first["recovery"]["lora"]["steps"] == 3
    assert (run / "model" / "config.json").is_file()
    said = fit(tmp_path)
    assert "took 2 of 2 trials from the study" in said
    assert "recovery goes on from" in said
    again = json.loads((run / "report.json").read_text())
    assert again["perplexity"] == first["perplexity"]
    assert again["model"] == first["model"]
