"""A cell's ``fit`` as a process of its own, which ends when the comparison ends, however that happens."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from adapruner.compare.cells import LOG_NAME, Cell, claim

_MARK = "$ "
_PR_SET_PDEATHSIG = 1


class Running(Protocol):
    """A cell at work."""

    def poll(self) -> int | None:
        """The exit code, or ``None`` while it runs."""

    def end(self) -> None:
        """Kills it, with everything it started."""


class FitProcess:
    """One ``adapruner fit``; what it prints goes to ``log.txt`` in the cell's folder, attempt after attempt."""

    def __init__(self, cell: Cell, threads: int | None = None) -> None:
        command = [sys.executable, "-m", "adapruner.cli", *cell.arguments]
        claim(cell, command)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_import_folder(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        with (cell.folder / LOG_NAME).open("ab") as log:
            log.write(f"{_MARK}{shlex.join(command)}\n".encode())
            log.flush()
            options: dict[str, Any] = {"preexec_fn": _die_with_parent()} if sys.platform == "linux" else {}
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True, **options
            )

    def poll(self) -> int | None:
        """The exit code, or ``None`` while it runs."""
        return self.process.poll()

    def end(self) -> None:
        """Kills the process at once: the search is written down trial by trial, and the next attempt goes on from there."""
        try:
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        except ProcessLookupError:
            pass
        self.process.wait()


def last_error(cell: Cell) -> str:
    """The line of the last attempt's log that says what went wrong: adapruner's own, else the last one."""
    try:
        lines = (cell.folder / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    begin = max((number for number, line in enumerate(lines) if line.startswith(_MARK)), default=-1)
    said = [line.strip() for line in lines[begin + 1 :] if line.strip()]
    own = [line.removeprefix("adapruner: error: ") for line in said if line.startswith("adapruner: error: ")]
    return (own or said or ["nothing was printed"])[-1]


def _import_folder() -> str:
    """The folder that this package is imported from: a checkout that is not installed works too."""
    return str(Path(__file__).resolve().parent.parent.parent)


def _die_with_parent() -> Any:
    """A function for the child, prepared here: even a comparison that is killed outright leaves no run behind (Linux)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
