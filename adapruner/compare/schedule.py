"""Runs the cells that are missing, a few at a time, and says how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapruner.compare.cells import Cell, is_done, seconds_of, tidy
from adapruner.compare.process import Running, last_error

Start = Callable[[Cell], Running]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    seconds: float | None
    """``None``: it was done before."""
    failure: str | None = None
    """The line that says why it failed."""


class Listener(Protocol):
    """Is told what happens."""

    def begun(self, cell: Cell, left: float | None) -> None:
        """A cell starts; ``left``: seconds until the last one ends, where there is something to judge by."""

    def ended(self, outcome: Outcome, left: float | None) -> None:
        """A cell is done or has failed."""


def run_cells(
    cells: Sequence[Cell],
    start: Start,
    listener: Listener,
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
    took = Durations([(cell.method, seconds_of(cell)) for cell in outcomes])
    working: dict[Cell, tuple[Running, float]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                cell = waiting.pop(0)
                listener.begun(cell, took.left([cell, *waiting], _elapsed(working), jobs))
                working[cell] = (start(cell), time.monotonic())
            for cell, code in [(c, running.poll()) for c, (running, _) in working.items()]:
                if code is None:
                    continue
                seconds = time.monotonic() - working.pop(cell)[1]
                outcomes[cell] = _outcome(cell, code, seconds)
                if outcomes[cell].failure is None:
                    took.add(cell.method, seconds)
                    if not keep_models:
                        tidy(cell)
                after_each(outcomes)
                listener.ended(outcomes[cell], took.left(waiting, _elapsed(working), jobs))
            if working:
                time.sleep(pause)
    finally:
        for running, _ in working.values():
            running.end()
    return {cell: outcomes[cell] for cell in cells}


class Durations:
    """What cells took so far, method by method: a search takes many times what a fixed recipe takes."""

    def __init__(self, known: Sequence[tuple[str, float | None]] = ()) -> None:
        self.seconds: dict[str, list[float]] = {}
        for method, seconds in known:
            if seconds is not None:
                self.add(method, seconds)

    def add(self, method: str, seconds: float) -> None:
        """One more finished cell."""
        self.seconds.setdefault(method, []).append(seconds)

    def expected(self, method: str) -> float | None:
        """Mean of the method's cells, else of all; ``None`` before the first."""
        of_all = [s for values in self.seconds.values() for s in values]
        values = self.seconds.get(method, of_all)
        return sum(values) / len(values) if values else None

    def left(self, waiting: Sequence[Cell], working: Mapping[Cell, float], jobs: int) -> float | None:
        """Seconds until the last cell ends.

        Args:
            working: cell at work -> seconds since it began.
        """
        rest = [(self.expected(cell.method), 0.0) for cell in waiting] + [(self.expected(c.method), t) for c, t in working.items()]
        if not rest:
            return 0.0
        return None if rest[0][0] is None else sum(max(0.0, (whole or 0.0) - begun) for whole, begun in rest) / jobs


def _elapsed(working: Mapping[Cell, tuple[Running, float]]) -> dict[Cell, float]:
    now = time.monotonic()
    return {cell: now - started for cell, (_, started) in working.items()}


def _outcome(cell: Cell, code: int, seconds: float) -> Outcome:
    if code == 0 and is_done(cell):
        return Outcome(cell, seconds)
    reason = last_error(cell) if code > 0 else f"ended by signal {-code}" if code < 0 else "it ended without a report"
    return Outcome(cell, seconds, reason)
