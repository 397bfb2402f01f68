"""How many threads a run on a CPU computes with: never more than the process may use at once, and said.

PyTorch counts the machine's cores; a container, a batch system or ``taskset`` may leave a process fewer, and threads that wait for
each other's core are several times slower than one. How busy the machine is decides nothing, since other threads round otherwise and a
run has to come to the same plan again; it is said.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: Variables that PyTorch's thread pools read; who sets one has chosen.
_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: Part of the machine's cores that others may use before it is called busy.
_BUSY = 0.5


def usable_cores(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Cores that this process may use at once, by its affinity and by the quotas of its control groups (Linux), at least one.

    >>> usable_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = min((_granted(folder) for folder in _folders(groups, membership)), default=math.inf)
    return cores if granted >= cores else max(1, math.ceil(granted))


def _folders(groups: Path, membership: Path) -> Iterator[Path]:
    """Of the process's own control groups and those around them, of both versions; some may not be there."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:  # another system
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in {groups, groups / "cpu", groups / controllers}:
            inside = root / path.strip("/")
            yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(root))


def _granted(folder: Path) -> float:
    """Cores that one group grants; infinity where it sets no limit."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):  # version 2, version 1
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()[:2]
            return int(quota) / int(period) if int(quota) > 0 else math.inf
        except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
            continue
    return math.inf


def choose_threads() -> str:
    """Sets PyTorch's threads for computing, unless the environment names a number; returns what to say."""
    import torch

    chosen = next((name for name in _CHOSEN if os.environ.get(name)), None)
    cores = usable_cores()
    if chosen is None and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
    threads = torch.get_num_threads()
    words = f"computes on {threads} thread{'s' if threads > 1 else ''} of {cores} core{'s' if cores > 1 else ''}"
    if chosen is not None:
        return f"{words}, as {chosen} says"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > 1 and load > _BUSY * (os.cpu_count() or 1):
        return f"{words}; the machine is busy (load {load:.1f}): OMP_NUM_THREADS={max(1, round(cores - load))} may be faster"
    return f"{words}; OMP_NUM_THREADS chooses another number"
