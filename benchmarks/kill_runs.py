"""Starts runs as forks of a process that has imported everything, watches where they are, and kills them there."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from forked import become, run_command
from kill_watch import watch

PATIENCE = 600.0
"""Seconds after which a run counts as hanging."""
ALONE = 5.0
"""Seconds that a process whose peer was killed has to end by itself, before it gets SIGTERM and then SIGKILL, as launchers do."""


@dataclass
class Aim:
    """Kill in the ``occurrence``-th entrance of ``stage``, ``offset`` seconds after it."""

    stage: str
    occurrence: int
    offset: float
    expected: float
    """Seconds after which the uninterrupted run came there: on a machine that is slower now, the offset grows alike."""
    signal: int
    ranks: tuple[int, ...] = (0,)


@dataclass
class Lived:
    """One attempt: how it ended and what it went through."""

    codes: list[int]
    seconds: float
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """(seconds since the start, stage) at every entrance of a stage, of the first process."""
    trials: int = 0
    """Evaluations of a trial that were begun, over all processes."""
    steps: int = 0
    scored: int = 0
    killed_in: str | None = None
    """The stage in which it was killed; ``None``: it was not."""
    killed_at: float = 0.0
    peer: str = ""
    """How a process ended whose peer was killed: by itself, by SIGTERM, by SIGKILL."""


class Process:
    """One forked process of a run."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _child(arguments, folder, environment, writing)
        os.close(writing)
        self.pipe, self.code, self._rest = reading, None, b""

    def lines(self) -> list[str]:
        """What it said since the last call; the pipe is ready or at its end."""
        data = os.read(self.pipe, 65536)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode() for line in whole]

    def poll(self) -> int | None:
        """The exit code, negative for a signal; ``None`` while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self, number: int) -> None:
        """Sends the signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        return self.poll() is not None


def _child(arguments: list[str], folder: Path, environment: dict[str, str], pipe: int) -> NoReturn:
    """Becomes the command line, in a process group of its own, whose stages go into the pipe."""
    os.setpgid(0, 0)
    os.environ.update(environment)
    log = os.open(folder / f"log-{environment.get('RANK', '0')}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        watch(pipe)
        run_command(arguments)

    become(work, folder, {1: log, 2: log})


def live(arguments: list[str], folder: Path, processes: int, aim: Aim | None) -> Lived:
    """One attempt, to its end or to the kill."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    running = [Process(arguments, folder, _environment(rank, processes, port)) for port in [_free_port()] for rank in range(processes)]
    lived, seen, deadline, stage = Lived([], 0.0), 0, None, "start"
    open_pipes = {p.pipe: rank for rank, p in enumerate(running)}
    try:
        while open_pipes and time.monotonic() - started < PATIENCE:
            left = 1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic()))
            ready, _, _ = select.select(list(open_pipes), [], [], left)
            for pipe in ready:
                rank = open_pipes[pipe]
                lines = running[rank].lines()
                if not lines and running[rank].wait(0.05):
                    del open_pipes[pipe]
                for line in lines:
                    _count(lived, line, rank)
                    if line.startswith("stage ") and rank == 0:
                        stage = line.removeprefix("stage ")
                        lived.timeline.append((time.monotonic() - started, stage))
                        seen += aim is not None and stage == aim.stage
                        if aim is not None and stage == aim.stage and seen == aim.occurrence + 1:
                            now = time.monotonic()
                            deadline = now + aim.offset * (now - started) / aim.expected
            if aim is not None and deadline is not None and time.monotonic() >= deadline:
                if all(running[r].poll() is None for r in aim.ranks):
                    lived.killed_in, lived.killed_at = stage, time.monotonic() - started
                    _end(running, aim, lived)
                break
        for process in running:
            process.wait(max(1.0, PATIENCE - (time.monotonic() - started)))
    finally:
        for process in running:
            process.kill(signal.SIGKILL)
            process.wait(10)
            for line in _rest_of(process):
                _count(lived, line, running.index(process))
            os.close(process.pipe)
    lived.codes, lived.seconds = [int(p.code or 0) for p in running], time.monotonic() - started
    if aim is not None and not any(lived.codes[rank] for rank in aim.ranks):  # it was at its end already
        lived.killed_in = None
    return lived


def _rest_of(process: Process) -> list[str]:
    lines: list[str] = []
    while more := process.lines():
        lines += more
    return lines


def _end(running: list[Process], aim: Aim, lived: Lived) -> None:
    """The signal to those aimed at, then what a launcher does with the others."""
    for rank in aim.ranks:
        running[rank].kill(aim.signal)
    for rank in aim.ranks:
        if not running[rank].wait(30.0):  # deaf to SIGTERM: what a scheduler does next
            running[rank].kill(signal.SIGKILL)
            lived.peer = "SIGKILL after SIGTERM"
    for process in (p for rank, p in enumerate(running) if rank not in aim.ranks):
        lived.peer = "by itself"
        if not process.wait(ALONE):
            lived.peer = "SIGTERM"
            process.kill(signal.SIGTERM)
            if not process.wait(ALONE):
                lived.peer = "SIGKILL"
                process.kill(signal.SIGKILL)


def _count(lived: Lived, line: str, rank: int) -> None:
    lived.trials += line == "trial"
    if rank == 0:
        lived.scored += line == "scored"
        lived.steps += line.startswith("step ")


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """As torchrun sets it."""
    if processes == 1:
        return {}
    size, number = str(processes), str(rank)
    return {
        "RANK": number,
        "LOCAL_RANK": number,
        "GROUP_RANK": "0",
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "kill-test",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def draw_aim(timeline: list[tuple[float, str]], seconds: float, stage: str, processes: int, draw: random.Random) -> Aim:
    """A moment in one of the spans of this stage in the uninterrupted run, each as likely as it is long."""
    ends = [t for t, _ in timeline[1:]] + [seconds]
    spans = [end - begin for (begin, name), end in zip(timeline, ends, strict=True) if name == stage]
    occurrence = draw.choices(range(len(spans)), weights=spans)[0]
    entrance = [begin for begin, name in timeline if name == stage][occurrence]
    number = signal.SIGTERM if draw.random() < 0.25 else signal.SIGKILL
    ranks = draw.choice([(0,), (1,), (0, 1)]) if processes == 2 else (0,)
    return Aim(stage, occurrence, draw.random() * spans[occurrence], entrance, number, ranks)
