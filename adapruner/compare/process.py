"""A cell's ``fit`` as a process of its own, which ends when the comparison ends, however that happens."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from adapruner.compare.cells import LOG_NAME, Cell, claim
from adapruner.compare.devices import VARIABLE, check_visible, least_used, visible_devices
from adapruner.compare.spec import OWNED
from adapruner.errors import as_written, written_as
from adapruner.threads import usable_cores

_MARK = "$ "
_PR_SET_PDEATHSIG = 1


class Running(Protocol):
    """A cell at work."""

    def poll(self) -> int | None:
        """The exit code, or ``None`` while it runs."""

    def end(self) -> None:
        """Kills it, with everything it started."""


class FitProcess:
    """One ``adapruner fit``; what it prints goes to ``log.txt`` in the cell's folder, attempt after attempt.

    Args:
        cell: what is run.
        threads: that it computes with on a CPU, unless the environment says a number; its own choice when empty.
        device: the only GPU that it sees, by number or identifier; all when empty.
    """

    def __init__(self, cell: Cell, threads: int | None = None, device: str | None = None) -> None:
        command = [sys.executable, "-m", "adapruner.cli", *cell.arguments]
        claim(cell, command)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_import_folder(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        if device is not None:
            environment[VARIABLE] = device
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


class Starter:
    """Starts the cells of a comparison: of several at a time each has its share of the processor's cores, and a GPU where there are some.

    Args:
        jobs: cells at a time.
        devices: GPUs to spread them over; for several cells at a time those that are there, when empty.
        devices_of_a_cell: what ``trainer.devices`` of the cells is.

    Raises:
        ConfigurationError: if a device is not one that this process may use.
    """

    def __init__(self, jobs: int, devices: Sequence[str] = (), devices_of_a_cell: Any = 1) -> None:
        spreads = jobs > 1 and str(devices_of_a_cell) in ("1", "auto")  # one that asks for several would not find them
        self.devices = tuple(check_visible(devices)) or (visible_devices() if spreads else ())
        self.threads = max(1, usable_cores() // jobs) if jobs > 1 else None
        self._running: list[tuple[FitProcess, str | None]] = []

    def __call__(self, cell: Cell) -> FitProcess:
        """The cell's ``fit``, begun on the GPU with the fewest cells."""
        self._running = [(process, device) for process, device in self._running if process.poll() is None]
        device = least_used(self.devices, (used for _, used in self._running))
        process = FitProcess(cell, self.threads, device)
        self._running.append((process, device))
        return process


def last_error(cell: Cell) -> str:
    """The line of the last attempt's log that says what went wrong, by the comparison's own options: adapruner's own, else the last one."""
    try:
        lines = (cell.folder / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    begin = max((number for number, line in enumerate(lines) if line.startswith(_MARK)), default=-1)
    said = [line.strip() for line in lines[begin + 1 :] if line.strip()]
    own = [line.removeprefix("adapruner: error: ") for line in said if line.startswith("adapruner: error: ")]
    with written_as({name.removeprefix("pruning."): option for name, option in OWNED.items() if "." in name}):
        return as_written((own or said or ["nothing was printed"])[-1])


def _import_folder() -> str:
    """The folder that this package is imported from: a checkout that is not installed works too."""
    return str(Path(__file__).resolve().parent.parent.parent)


def _die_with_parent() -> Any:
    """A function for the child, prepared here: even a comparison that is killed outright leaves no run behind (Linux)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
