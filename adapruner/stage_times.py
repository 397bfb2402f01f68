"""How long the stages of a run take, over all processes that worked at it: kept in ``stages.json`` of the run folder.

Stages do not overlap: while one runs inside another, the outer one's clock stands still, so that they add up to the run. The file also
says which stage a process is in, for whoever watches it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapruner.distributed import is_rank_zero
from adapruner.errors import ConfigurationError
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import opened, sealed
from adapruner.progress import LOG, RUN_LOG

FILE = "stages.json"
LOADING = "loading"
"""From the start of the run until nothing is left to refuse: libraries, model, text."""
OTHER = "between stages"
SUMMARY = "stages: "
"""Begins the last line of the log: what is left then is the report."""


@dataclass
class ProcessTimes:
    """What one process did."""

    began: float
    """Seconds of the system's clock."""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds."""
    peak_gib: float = 0.0
    """The most memory that it held."""
    stage: str | None = None
    """The one that it is in."""
    since: float | None = None
    """When it entered or came back to that stage, by the system's clock."""


class StageTimes:
    """The clock of one run in this process, and what earlier processes left; see :func:`keep_times`."""

    def __init__(self, folder: Path | None, identity: str = "", began: float | None = None) -> None:
        self.folder, self.identity = folder if is_rank_zero() else None, identity
        self.earlier = [] if self.folder is None else read_times(self.folder, identity)
        self.own = ProcessTimes(time.time() if began is None else began)
        self._stack: list[str] = []
        self._moved = time.monotonic()
        self._began = self._moved - (time.time() - self.own.began)
        if began is not None:
            self.own.stages[LOADING] = self._moved - self._began

    def enter(self, name: str) -> None:
        """A stage begins; that around it waits."""
        self._book()
        self._stack.append(name)
        self._write()

    def leave(self) -> None:
        """The stage ends, and that around it goes on."""
        self._book()
        del self._stack[-1:]  # it may have been closed in between
        self._write()

    def processes(self) -> list[ProcessTimes]:
        """All that worked at the run, this one last, as of now."""
        self._book()
        return [*self.earlier, self.own]

    def summary(self) -> dict[str, Any]:
        """``seconds``, ``peak_gib``, ``processes`` and ``stages`` of the report's section."""
        found = self.processes()
        sums = {"seconds": sum(process.seconds for process in found), "peak_gib": max(process.peak_gib for process in found)}
        return {**sums, "processes": len(found), "stages": seconds_by_stage(found)}

    def close(self) -> None:
        """The process has done its part: the folder may be another's from now on."""
        self._book()
        self._stack.clear()
        self._write()
        self.folder = None

    def _book(self) -> None:
        now = time.monotonic()
        if self._stack:
            self.own.stages[self._stack[-1]] = self.own.stages.get(self._stack[-1], 0.0) + now - self._moved
        self._moved, self.own.seconds, self.own.peak_gib = now, now - self._began, peak_gib()

    def _write(self) -> None:
        self.own.stage = self._stack[-1] if self._stack else None
        self.own.since = time.time()
        if self.folder is not None and self.folder.is_dir():
            record = {"identity": self.identity, "processes": [asdict(process) for process in (*self.earlier, self.own)]}
            with suppress(OSError, ConfigurationError):  # a full disk is told by what has to be written
                write_atomically(self.folder / FILE, json.dumps(sealed(record), indent=1) + "\n")


_RUNNING: ContextVar[StageTimes | None] = ContextVar("stage_times", default=None)


@contextmanager
def keep_times(folder: Path | None, identity: str = "", began: float | None = None) -> Iterator[StageTimes]:
    """Inside the block every :func:`stage` is timed; what earlier processes of the same run took is known from the run folder.

    Args:
        folder: of the run, which is this process's; ``None`` keeps nothing.
        identity: of the run: times of another one in the same folder are forgotten.
        began: when the run began, by the system's clock; what passed since counts as loading. Now, when empty.

    >>> with keep_times(None) as times, stage("search"):
    ...     pass
    >>> list(seconds_by_stage(times.processes()))
    ['search', 'between stages']
    """
    before, times = _RUNNING.get(), StageTimes(folder, identity, began)
    _RUNNING.set(times)
    try:
        yield times
    finally:
        _RUNNING.set(before)
        times.close()
        if is_rank_zero():
            LOG.info(f"{SUMMARY}{', '.join(f'{name} {seconds:.1f} s' for name, seconds in seconds_by_stage(times.processes()).items())}")


def running_times() -> StageTimes | None:
    """The clock of the run that this code is part of, if it has one."""
    return _RUNNING.get()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A stage of the run, as a block or as a decorator of a function; it costs nothing where no run is timed.

    >>> @stage("search")
    ... def search():
    ...     return "found"
    >>> search()
    'found'
    """
    times = _RUNNING.get()
    if times is None:
        yield
        return
    times.enter(name)
    try:
        yield
    finally:
        times.leave()


def seconds_by_stage(processes: list[ProcessTimes]) -> dict[str, float]:
    """Stage -> seconds over all processes, in the order in which they were first entered, and what lay between them.

    >>> seconds_by_stage([ProcessTimes(0.0, 3.0, {"search": 3.0}), ProcessTimes(9.0, 4.0, {"search": 1.0, "refit": 2.0})])
    {'search': 4.0, 'refit': 2.0, 'between stages': 1.0}
    """
    sums: dict[str, float] = {}
    for process in processes:
        for name, seconds in process.stages.items():
            sums[name] = sums.get(name, 0.0) + seconds
    return {**sums, OTHER: max(0.0, sum(process.seconds for process in processes) - sum(sums.values()))}


def read_times(folder: Path, identity: str | None = None) -> list[ProcessTimes]:
    """What the run folder knows of the processes that worked in it; nothing where there is no file, or it is damaged or another run's.

    One that was killed in a stage is known to have lived until it last said something.

    Args:
        identity: of the run; any when ``None``.
    """
    try:
        record = opened(json.loads((folder / FILE).read_text(encoding="utf-8")))
        if identity is not None and record["identity"] != identity:
            return []
        processes = [_process(row) for row in record["processes"]]
    except (OSError, ValueError, KeyError, TypeError):  # times are worth no refusal
        return []
    if identity is not None and processes:
        _lived_until(processes[-1], folder / RUN_LOG)
    return processes


def _process(row: Mapping[str, Any]) -> ProcessTimes:
    return ProcessTimes(**{name: row[name] for name in ProcessTimes.__dataclass_fields__})


def _lived_until(process: ProcessTimes, log: Path) -> None:
    if process.stage is None or process.since is None or not log.is_file():
        return
    more = max(0.0, log.stat().st_mtime - process.since)
    process.stages[process.stage] = process.stages.get(process.stage, 0.0) + more
    process.seconds, process.stage = process.seconds + more, None


def process_began() -> float:
    """When this process began, by the system's clock."""
    import psutil

    return float(psutil.Process().create_time())


def peak_gib() -> float:
    """The most memory that this process held.

    >>> peak_gib() > 0
    True
    """
    try:
        import resource
    except ImportError:  # Windows keeps the figure itself
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**30
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**30 if sys.platform == "darwin" else 2**20)
