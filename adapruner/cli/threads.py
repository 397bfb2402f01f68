"""How many threads a run on a CPU computes with: never more than the process may use at once, and said.

PyTorch counts the machine's cores; a container, a batch system or ``taskset`` may leave a process fewer, and threads that wait for
each other's core are several times slower than one. How busy the machine is decides nothing, since other threads round otherwise and a
run has to come to the same plan again; it is said.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: Variables that PyTorch's thread pools read; who sets one has chosen.
_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: Part of the machine's cores that others may use before it is called busy.
_BUSY = 0.5


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores that this process may use at once, by its affinity and by its control group's quota (Linux), at least one.

    >>> usable_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        granted, period = quota.read_text().split()[:2]
        return max(1, min(cores, math.ceil(int(granted) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no control groups, or "max": no limit
        return cores


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
