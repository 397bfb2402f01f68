"""What a comparison says while it runs: a line when a cell begins and when it ends, and a bar."""

from __future__ import annotations

from collections.abc import Callable

from adapruner.compare.cells import LOG_NAME, Cell, has_begun
from adapruner.compare.schedule import Outcome
from adapruner.progress import announce
from adapruner.report.formats import duration_text


class Display:
    """A :class:`~adapruner.compare.schedule.Listener` that prints.

    Args:
        advance: of :func:`adapruner.progress.progress_bar`.
        total: cells of the comparison.
        done: cells that were done before.
    """

    def __init__(self, advance: Callable[..., None], total: int, done: int) -> None:
        self.advance, self.total, self.done = advance, total, done
        advance(done)
        announce(f"comparison of {total} cells" + (f": {done} done before, {total - done} to run" if done else ""))

    def begun(self, cell: Cell, left: float | None) -> None:
        """Prints which cell begins, and how long the rest may take."""
        note = f"{cell.title}{', goes on' if has_begun(cell) else ''}"
        rest = f"; about {duration_text(left)} left" if left is not None and left >= 1 else ""
        announce(f"{self.done + 1} of {self.total}: {note}{rest}")
        self.advance(self.done, f"{note}{rest}")

    def ended(self, outcome: Outcome, left: float | None) -> None:
        """The cell's result in one line."""
        self.done += 1
        took = duration_text(outcome.seconds)
        result = f"done in {took}"
        if outcome.failure is not None:
            result = f"FAILED after {took}: {outcome.failure} ({outcome.cell.folder / LOG_NAME})"
        announce(f"{outcome.cell.title}: {result}")
        self.advance(self.done)
