from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapruner import cli
from adapruner.cli import fit
from adapruner.files.atomic import clear_leftovers, write_atomically


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_was_writing_goes(tmp_path: Path, dead: int) -> None:
    (tmp_path / "plan.json").write_text("whole")
    (tmp_path / f".plan.json.{dead}.tmp").write_text("ha")
    (tmp_path / f".plan.json.{os.getpid()}.tmp").write_text("our number was another process's before")
    (tmp_path / f".model.{dead}.tmp").mkdir()
    (tmp_path / f".model.{dead}.tmp" / "config.json").write_text("{")
    (tmp_path / f".write-test.{dead}").write_text("{}")
    (tmp_path / ".hidden").write_text("not ours")
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "plan.json"]
    assert (tmp_path / "plan.json").read_text() == "whole"


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    (tmp_path / f".plan.json.{os.getppid()}.tmp").write_text("in the middle of it")
    clear_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("staged", [False, True])
def test_an_export_that_was_moved_aside_comes_back(tmp_path: Path, dead: int, staged: bool) -> None:
    """Killed between moving the old folder away and the new one in."""
    old = tmp_path / f".model.{dead}.new" / "model.old" if staged else tmp_path / f".model.{dead}.old"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").exists()


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        write_atomically(tmp_path / "a.json", "new \ud800")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_one_line(number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(command: str, words: list[str]) -> None:
        raise OSError(number, os.strerror(number), "runs/x/plan.json")

    monkeypatch.setattr(fit, "run_trainer", full)
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["fit"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        f"expected room and the right to write, got {os.strerror(number)} at runs/x/plan.json; make room, the same command goes on" in said
    )
