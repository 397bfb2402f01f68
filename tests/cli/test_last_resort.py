"""Whatever ends a command is one line."""

from __future__ import annotations

import errno
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner import cli
from adapruner.cli import last_resort, main
from adapruner.errors import ConfigurationError, printable
from tests.spoilt import make_workspace

ROOT = Path(__file__).parents[2]
FAULT = (
    r"adapruner: expected to go on, got {}; this is a fault of adapruner's, not yours: please report it with .*adapruner-\w+\.txt, where"
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("x"), FAULT.format("KeyError: 'x'")),
        (RuntimeError("several\nlines"), FAULT.format("RuntimeError: several lines")),
        (AssertionError(), FAULT.format("AssertionError: ")),
        (BaseException("a panic"), FAULT.format("BaseException: a panic")),
        (MemoryError(), r"memory: expected enough .*, got none left \(MemoryError\); lower the batch sizes"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"), r"memory: expected enough"),
        (torch.OutOfMemoryError("CUDA out of memory"), r"memory: expected enough"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            r"folder: expected room .*, got No space left on device at a/b; make room",
        ),
        (OSError(errno.EFBIG, "File too large"), r"folder: expected room and the right to write, got File too large; make room"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), r"arguments: expected paths that a file system takes"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/no/run/a.json"),
            r"folder: expected /no/run to stay where it was, got none any more",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "/no.json"), FAULT.format("FileNotFoundError: .*")),
        (ConfigurationError("a: expected 1, got \x1b[2J; give 1"), r"a: expected 1, got \\x1b\[2J; give 1"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_one_line_and_code_2(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(arguments: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(last_resort.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["fit"])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"adapruner: error: {message}", line), line
    written = list(tmp_path.iterdir())
    assert len(written) == ("fault of adapruner's" in line)
    assert all("Traceback" in file.read_text() for file in written)


@pytest.mark.parametrize(
    "text", ["Connection closed by peer [127.0.0.1]:123", "[/gloo/transport/tcp/pair.cc:534] Read error", "NCCL error"]
)
def test_a_process_that_lost_its_peers_says_so(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_resort.describe(RuntimeError(text)).startswith("adapruner: ")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert last_resort.describe(RuntimeError(text)).startswith("processes: expected all of them to go on, got one that ended")


def test_a_traceback_that_cannot_be_written_is_said_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_resort.tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(OSError("full")))
    try:
        raise ValueError("x")
    except ValueError as error:
        line = last_resort.describe(error)
    assert re.search(r"report it with this line: the traceback in .*test_last_resort\.py, line \d+ could not be written$", line)


def test_an_interrupt_and_a_reader_that_has_read_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error, code in ((KeyboardInterrupt(), "130"), (BrokenPipeError(), "141"), (SystemExit(7), "7")):
        monkeypatch.setattr(cli, "_run", lambda arguments, error=error: (_ for _ in ()).throw(error))
        with monkeypatch.context() as kept:
            kept.setattr(sys, "stdout", sys.stdout)
            with pytest.raises(SystemExit, match=f"^{code}$"):
                main([])
    assert capsys.readouterr().err == "adapruner: interrupted; the same command goes on where it stopped\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e9 \u6f22 \u2500 \u2022", "plain \u00e9 \u6f22 \u2500 \u2022"),
        ("\x1b]0;title\x07\x1b[31m", "\\x1b]0;title\\x07\\x1b[31m"),
        ("\x9b2J\x9d", "\\x9b2J\\x9d"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("\ud800", "\\ud800"),
        ("two\nlines\tand\u00a0more\u200d", "two\nlines\tand\u00a0more\u200d"),
        ("\r\x08", "\\r\\x08"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_an_output_that_lacks_characters_ends_nothing(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    from adapruner.progress import announce, progress_bar, terminal

    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    announce("\u2022 \u6f22 \x1b[2J")
    with progress_bar("\u2500", 2) as advance:
        advance(2, "\u2022")
    table = Table("\u2500")
    table.add_row("\u2022 \x9b")
    terminal().print(table)
    out.seek(0)
    assert "\\x1b[2J" in out.read()


_LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))"
_WHEN_THE_PLAN_IS_SAVED = """
import os
import adapruner.search.find_plan as find
import adapruner.callbacks.pruning_search as callback
own = find.save_found_plan
def save(*arguments):
    {}
    own(*arguments)
callback.save_found_plan = save
"""
_RENAMED = _WHEN_THE_PLAN_IS_SAVED.format('os.rename("run", "away")')
_INTERRUPTED = _WHEN_THE_PLAN_IS_SAVED.format("raise KeyboardInterrupt")


@pytest.mark.slow  # a process that loads everything
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (_LIMITED, 2, "adapruner: error: folder: expected to write"),
        (_RENAMED, 2, "adapruner: error: folder: expected "),
        (_INTERRUPTED, 130, "adapruner: interrupted; the same command goes on where it stopped"),
    ],
    ids=["a file may not grow", "the run folder is renamed", "an interrupt inside fit"],
)
def test_what_comes_from_outside_is_one_line(change: str, code: int, said: str, tmp_path: Path) -> None:
    make_workspace(tmp_path)
    words = ["fit", "--config", "base.yaml", "--pruning.recipe={coefficients: {l2: 1.0}}", "--pruning.reconstruction=null"]
    program = f"{change}\nfrom adapruner.cli import main\nmain({words!r})"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": ""}  # a limit would cut bytecode short, too
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("adapruner: ")]
    assert line.startswith(said)
