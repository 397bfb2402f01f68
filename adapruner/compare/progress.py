"""What a comparison says while it runs: a line per cell, a bar on a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from adapruner.compare.cells import LOG_NAME, Cell, has_begun
from adapruner.compare.schedule import Outcome


class Display:
    """A :class:`~adapruner.compare.schedule.Listener` that prints."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.total, self.done = total, done
        self.console = Console(soft_wrap=True, highlight=False)
        columns = (
            TextColumn("comparison"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task: Any = self.bar.add_task("comparison", total=total, completed=done, note="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def announce(self, done: int) -> None:
        """What is there already."""
        rest = self.total - done
        self._say(f"comparison of {self.total} cells: {done} done before, {rest} to run" if done else f"comparison of {self.total} cells")

    def begun(self, cell: Cell, left: float | None) -> None:
        """On a terminal the bar's note, else a line of its own."""
        note = f"{cell.title}{', goes on' if has_begun(cell) else ''}{_left(left)}"
        self.bar.update(self.task, note=note)
        if not self.console.is_terminal:
            self._say(f"{self.done + 1} of {self.total}: {note}")

    def ended(self, outcome: Outcome, left: float | None) -> None:
        """The cell's result in one line."""
        self.done += 1
        self.bar.update(self.task, completed=self.done, note=_left(left).removeprefix("; "))
        took = duration_text(outcome.seconds or 0.0)
        result = f"done in {took}"
        if outcome.failure is not None:
            result = f"FAILED after {took}: {outcome.failure} ({outcome.cell.folder / LOG_NAME})"
        self._say(f"{outcome.cell.title}: {result}")

    def _say(self, line: str) -> None:
        self.console.print(f"adapruner: {line}", markup=False)


def duration_text(seconds: float) -> str:
    """Seconds for people.

    >>> duration_text(41.2), duration_text(371), duration_text(9000)
    ('41 s', '6 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _left(seconds: float | None) -> str:
    return "" if seconds is None or seconds < 1 else f"; about {duration_text(seconds)} left"
