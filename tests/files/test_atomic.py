from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapruner import cli
from adapruner.cli import fit
from adapruner.errors import ConfigurationError
from adapruner.files.atomic import clear_leftovers, replace_folder, replacing, write_atomically
from adapruner.files.tensor_file import write_tensors


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_was_writing_goes(tmp_path: Path, dead: int) -> None:
    (tmp_path / "plan.json").write_text("whole")
    (tmp_path / f".adapruner-{dead}-plan.json.tmp").write_text("ha")
    (tmp_path / f".adapruner-{os.getpid()}-plan.json.tmp").write_text("our number was another process's before")
    (tmp_path / f".adapruner-{dead}-model.new" / "model").mkdir(parents=True)
    (tmp_path / f".adapruner-{dead}-model.new" / "model" / "config.json").write_text("{")
    (tmp_path / ".hidden").write_text("not ours")
    clear_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "plan.json"]
    assert (tmp_path / "plan.json").read_text() == "whole"


@pytest.mark.parametrize(
    "name",
    [
        ".notes.{0}.tmp",
        ".thesis.2024.new",
        ".write-test.{0}",
        ".adapruner-notes",
        ".adapruner-{0}-notes",
        "adapruner-{0}-notes.tmp",
        "a.tmp",
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_what_does_not_carry_our_mark_stays(tmp_path: Path, dead: int, name: str, folder: bool) -> None:
    mine = tmp_path / name.format(dead)
    (mine / "chapter 1").mkdir(parents=True) if folder else mine.write_text("mine")
    clear_leftovers(tmp_path)
    assert mine.exists()
    assert not folder or list(mine.iterdir())


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    (tmp_path / f".adapruner-{os.getppid()}-plan.json.tmp").write_text("in the middle of it")
    clear_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("staged", [False, True])
def test_an_export_that_was_moved_aside_comes_back(tmp_path: Path, dead: int, staged: bool) -> None:
    """Killed between moving the old folder away and the new one in."""
    old = tmp_path / f".adapruner-{dead}-model.new" / "model.old" if staged else tmp_path / f".adapruner-{dead}-model.old"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    clear_leftovers(tmp_path, "others")
    assert not (tmp_path / "model").exists()
    clear_leftovers(tmp_path, "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").exists()


@pytest.fixture(params=[0o022, 0o077, 0o007])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_every_file_has_the_mode_of_a_new_one(tmp_path: Path, umask: int) -> None:
    """Whatever the library that wrote it thinks: safetensors writes for the owner alone."""
    write_atomically(tmp_path / "a.json", "{}")
    write_tensors(tmp_path / "a.safetensors", "key", {"a": torch.ones(2)})
    new = tmp_path / "new" / "model"
    (new / "inside").mkdir(parents=True)
    for name in ("model.safetensors", "inside/adapter.safetensors"):
        save_file({"a": torch.ones(2)}, new / name)
    replace_folder(new, tmp_path / "model")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert modes(tmp_path) == {0o666 & ~umask}


def test_a_disk_without_room_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with (
        pytest.raises(
            ConfigurationError, match=r"^folder: expected \d+\.\d MiB of room for .*a\.json, got \d+\.\d MiB; make room, the same"
        ),
        replacing(tmp_path / "a.json", 1 << 60),
    ):
        raise AssertionError
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_is_one_line_with_its_room(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:595] . PytorchStreamWriter"),
    ):
        with (
            pytest.raises(
                ConfigurationError, match=r"^folder: expected to write .*a\.json, got .*\(\d+\.\d MiB of room\); make room, the same"
            ),
            replacing(tmp_path / "a.json"),
        ):
            raise error
    with pytest.raises(RuntimeError, match=r"^ours$"), replacing(tmp_path / "a.json"):
        raise RuntimeError("ours")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_renamed_is_one_line_and_not_made_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.rename(tmp_path / "moved")
    with pytest.raises(
        ConfigurationError, match=r"^folder: expected the folder .*run to stay where it was, got none any more; put it back"
    ):
        write_atomically(run / "plan.json", "{}")
    assert [p.name for p in tmp_path.iterdir()] == ["moved"]


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"^folder: expected a file at .*plan.json, got a folder; move it away$"):
        write_atomically(tmp_path / "plan.json", "{}")


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
