"""One run at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapruner.errors import ConfigurationError
from adapruner.files.folder_lock import FolderLock, check_folder, held

REFUSED = r"^folder: expected no other run at work in .*, got one; wait for it, end it, or choose another folder$"


def test_a_second_one_waits_for_the_first_to_end(tmp_path: Path) -> None:
    first, second = FolderLock(), FolderLock()
    first.take(tmp_path)
    first.take(tmp_path)  # it is ours
    with pytest.raises(ConfigurationError, match=REFUSED):
        second.take(tmp_path)
    first.release()
    second.take(tmp_path)
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = "import os, sys; from adapruner.files.folder_lock import FolderLock; from pathlib import Path; "
    code += "lock = FolderLock(); lock.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    mine = FolderLock()
    with pytest.raises(ConfigurationError, match=REFUSED):
        mine.take(tmp_path)
    process.kill()
    process.wait()
    mine.take(tmp_path)
    mine.release()


FILES = (
    "config.yaml",
    "plan.json",
    "study.journal",
    "trials.csv",
    "statistics.safetensors",
    "statistics-64.safetensors",
    "grams.safetensors",
    "reranking.json",
    "calibration_spread.json",
    "calibration_set.json",
    "latency.json",
    "pareto.json",
    "plans/trial-3.json",
    "report.json",
    "report.html",
    "report_measurements.json",
    "stages.json",
    "finished.json",
    "predictions.jsonl",
    "checkpoints/last.ckpt",
    "checkpoints/recovery.pt",
    ".lock",
)


def put_in_place(file: Path, way: str) -> None:
    """Something that is no file, where a file should be."""
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    if way == "folder":
        (file / "notes").mkdir(parents=True)
    else:
        file.symlink_to(file.name if way == "loop" else "leads/nowhere")


@pytest.mark.parametrize("way", ["folder", "dangling link", "loop"])
@pytest.mark.parametrize("name", FILES)
def test_what_stands_in_the_place_of_a_file_is_named_and_left_alone(tmp_path: Path, name: str, way: str) -> None:
    put_in_place(tmp_path / name, way)
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(
            ConfigurationError, match=rf"^folder: expected a (file|checkpoint) at .*/{name}, got a (folder|link .*); move it away$"
        ),
        held(tmp_path),
    ):
        raise AssertionError
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["checkpoints", "plans", "model", "refit"])
def test_and_in_that_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigurationError, match=rf"^folder: expected a folder at .*/{name}, got something else; move it away$"):
        check_folder(tmp_path)


def test_what_is_refused_leaves_no_folder_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no"), held(tmp_path / "a" / "b"):
        raise ConfigurationError("no")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".notes.99999.tmp").write_text("mine")
    with held(tmp_path / "a"):
        pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".notes.99999.tmp"]


def test_a_folder_that_was_renamed_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with held(run) as lock:
        lock.check()
        run.rename(tmp_path / "moved")
        with pytest.raises(
            ConfigurationError, match=r"^folder: expected .*run/\.lock to stay where it was during the run, got none any more; put it"
        ):
            lock.check()
