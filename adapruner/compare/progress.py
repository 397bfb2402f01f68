"""What a comparison says while it runs: a line when a cell begins and when it ends, and a bar."""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapruner.compare.cell_state import state_line
from adapruner.compare.cells import LOG_NAME, Cell, has_begun
from adapruner.progress import Advance, announce
from adapruner.report.formats import duration_text

#: Seconds between two looks at the folders of the cells at work.
LOOK_EVERY = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    seconds: float | None
    """``None``: it was done before."""
    failure: str | None = None
    """The line that says why it failed."""


class Display:
    """Prints what begins and how it ended.

    Args:
        advance: of :func:`adapruner.progress.progress_bar`.
        total: cells of the comparison.
        done: cells that were done before.
    """

    def __init__(self, advance: Advance, total: int, done: int) -> None:
        self.advance, self.total, self.done = advance, total, done
        self._began: dict[Cell, float] = {}
        self._looked = 0.0
        advance(done)
        announce(f"comparison of {total} cells" + (f": {done} done before, {total - done} to run" if done else ""))

    def begun(self, cell: Cell) -> None:
        """Prints which cell begins."""
        note = f"{cell.title}{', goes on' if has_begun(cell) else ''}"
        announce(f"{self.done + len(self._began) + 1} of {self.total}: {note}")
        self._began[cell] = time.time()
        self.advance(self.done)

    def at_work(self) -> None:
        """In which stage each cell at work is, and since when; as often as one likes, the folders are looked at once a second."""
        if time.monotonic() - self._looked >= LOOK_EVERY:
            self.advance.below([state_line(cell, began) for cell, began in self._began.items()])
            self._looked = time.monotonic()

    def ended(self, outcome: Outcome) -> None:
        """The cell's result in one line."""
        self.done += 1
        self._began.pop(outcome.cell, None)
        self._looked = 0.0
        took = duration_text(outcome.seconds)
        result = f"done in {took}"
        if outcome.failure is not None:
            result = f"FAILED after {took}: {outcome.failure} ({outcome.cell.folder / LOG_NAME})"
        announce(f"{outcome.cell.title}: {result}")
        self.advance(self.done)
