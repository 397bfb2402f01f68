"""Runs the cells that are missing, a few at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from adapruner.compare.cells import Cell, is_done, tidy
from adapruner.compare.process import Running, last_error
from adapruner.compare.progress import Display, Outcome

Start = Callable[[Cell], Running]


def run_cells(
    cells: Sequence[Cell],
    start: Start,
    display: Display,
    *,
    after_each: Callable[[Mapping[Cell, Outcome]], None] = lambda outcomes: None,
    jobs: int = 1,
    keep_models: bool = False,
    pause: float = 0.2,
) -> dict[Cell, Outcome]:
    """Every cell's outcome; those that are done are not run again. A failure does not stop the others.

    Whatever ends this function early (a signal, an error) ends the cells at work, too.

    Args:
        start: starts a cell.
        after_each: called with all outcomes so far whenever a cell has ended.
        jobs: cells at a time.
        pause: seconds between two looks at the cells at work.
    """
    outcomes = {cell: Outcome(cell, None) for cell in cells if is_done(cell)}
    for cell in () if keep_models else outcomes:  # a comparison that was killed may not have come to it
        tidy(cell)
    waiting = [cell for cell in cells if cell not in outcomes]
    working: dict[Cell, tuple[Running, float]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                cell = waiting.pop(0)
                display.begun(cell)
                working[cell] = (start(cell), time.monotonic())
            for cell, code in [(c, running.poll()) for c, (running, _) in working.items()]:
                if code is None:
                    continue
                seconds = time.monotonic() - working.pop(cell)[1]
                outcomes[cell] = _outcome(cell, code, seconds)
                if outcomes[cell].failure is None and not keep_models:
                    tidy(cell)
                after_each(outcomes)
                display.ended(outcomes[cell])
            if working:
                display.at_work()
                time.sleep(pause)
    finally:
        for running, _ in working.values():
            running.end()
    return {cell: outcomes[cell] for cell in cells}


def _outcome(cell: Cell, code: int, seconds: float) -> Outcome:
    if code == 0 and is_done(cell):
        return Outcome(cell, seconds)
    reason = last_error(cell) if code > 0 else f"ended by signal {-code}" if code < 0 else "it ended without a report"
    return Outcome(cell, seconds, reason)
