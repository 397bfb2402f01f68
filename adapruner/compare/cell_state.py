"""Where a cell at work is: read from what its run keeps in its folder, ``stages.json`` and ``run.log``."""

from __future__ import annotations

import re
import time

from adapruner.compare.cells import Cell
from adapruner.progress import RUN_LOG
from adapruner.report.formats import duration_text
from adapruner.stage_times import OTHER, SUMMARY, ProcessTimes, read_times

_TAIL = 4096
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ")


def state_line(cell: Cell, began: float) -> str:
    """``l2, 20.0 %, seed 0: search for 1 min 12 s, 1 min 40 s in all; search: 7 of 32, after 0:00:45, 0:02:06 left``.

    Args:
        cell: at work.
        began: when this attempt at it did, by the system's clock: what stands in its folder from before does not count.
    """
    now = time.time()
    whole = f"{duration_text(now - began)} in all"
    process = _own_process(cell, began)
    if process is None:
        return f"{cell.title}: loading, {whole}"
    stage, since = process.stage or OTHER, process.since or began
    spent = process.stages.get(stage, 0.0) + max(0.0, now - since)
    said = last_line(cell, began)
    if said.startswith(SUMMARY):
        return f"{cell.title}: report, {whole}"
    return f"{cell.title}: {stage} for {duration_text(spent)}, {whole}{f'; {said}' if said else ''}"


def last_line(cell: Cell, began: float) -> str:
    """What the run said last, without its time; nothing where it has said nothing yet."""
    file = cell.folder / RUN_LOG
    try:
        if file.stat().st_mtime < began:
            return ""
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - _TAIL))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return _STAMP.sub("", lines[-1]) if lines else ""


def _own_process(cell: Cell, began: float) -> ProcessTimes | None:
    """The times of the process at work, not of one before it; the system knows a process's beginning to a hundredth of a second."""
    known = read_times(cell.folder)
    return known[-1] if known and known[-1].began >= began - 1.0 else None
