"""The command line on two processes, which Lightning starts: from search to report and export, and the same command once more."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.processes import ROOT, clean_environment, free_port
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
    assert "run: this run is finished" in fit(tmp_path)
    (run / "finished.json").unlink()
    said = fit(tmp_path)
    assert "took 2 of 2 trials from the study" in said
    assert "recovery goes on from" in said
    again = json.loads((run / "report.json").read_text())
    assert again["perplexity"] == first["perplexity"]
    assert again["model"] == first["model"]


def test_one_of_two_is_killed_and_the_other_says_so_in_one_line(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    environment = {**clean_environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "base.yaml", *TWO, "--pruning.search.n_trials", "500"]
    started = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / f"{rank}.txt").open("w"),
            start_new_session=True,
        )
        for rank in range(2)
    ]
    try:
        end = time.monotonic() + 200
        while not (tmp_path / "run" / "study.journal").exists() and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(1)
        started[1].kill()
        assert started[0].wait(timeout=60) == 2
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = (tmp_path / "0.txt").read_text()
    assert "Traceback" not in said
    assert "adapruner: error: processes: expected all of them to go on, got one that ended" in said
