"""How a bar is laid out: numbers of all stages stand below each other, and what there is no room for ends at a word.

Imports :mod:`rich`, and so is imported by nothing before a bar is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from textwrap import shorten

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

#: Characters of a stage's name together with its bar, in a terminal of 80 and in a wide one; of the name and of the bar at least.
NARROW, WIDE = 30, 46
NAME, SHORTEST = 14, 4


def bar_columns(width: int, title: str) -> list[ProgressColumn]:
    """Name, bar, how much is done, time spent and left, in a terminal of ``width`` characters: 57 of 80 are taken.

    >>> len(bar_columns(80, "statistics"))
    4
    """
    name = max(NAME, len(title))
    whole = min(WIDE, max(NARROW, NARROW + (width - 80) * 2 // 5))
    return [
        TextColumn(f"{{task.description:<{name}}}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=max(SHORTEST, whole - name - 1)),
        Done(),
        Times(),
    ]


def note_column() -> ProgressColumn:
    """The rest of the line: what the stage says of itself, the field ``note``."""
    return NoteColumn(table_column=Column(ratio=1, no_wrap=True))


class Done(ProgressColumn):
    """``12/64``; where nobody knows how many there will be, ``12``."""

    def render(self, task: Task) -> Text:
        """Of a width that a thousand of a thousand fit in."""
        known = task.total is not None and task.total != float("inf")
        return Text(f"{f'{int(task.completed)}/{int(task.total or 0)}' if known else int(task.completed):>9}", "progress.download")


class Times(ProgressColumn):
    """``1:35, 0:12 left``; of what is done the time that it took."""

    max_refresh = 0.5  # seconds

    def render(self, task: Task) -> Text:
        """Of a width that an hour's stage fits in."""
        spent = task.finished_time if task.finished else task.elapsed
        left = None if task.finished else task.time_remaining
        said = clock_text(spent or 0) + ("" if left is None else f", {clock_text(left)} left")
        return Text(f"{said:<15}", "progress.elapsed")


class NoteColumn(ProgressColumn):
    """A note that ends at a word where it has no room."""

    def render(self, task: Task) -> Shortened:
        """The task's field ``note``."""
        return Shortened(task.fields.get("note", ""))


class Shortened:
    """One line of text; what there is no room for goes from the last word on.

    >>> Console(width=20).print(Shortened("best 3.2591, trial 12, searched"))
    best 3.2591, trial…
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        words = re.sub(r"[,;:]?…$", "…", shorten(self.text, options.max_width, placeholder="…"))
        whole = words.strip() not in ("", "…")  # else not even the first word fits
        yield Text(words if whole else self.text, no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, min(len(self.text), options.max_width))


def one_line_each(said: Iterable[str]) -> list[Shortened]:
    """Lines below a bar, none longer than the terminal is wide."""
    return [Shortened(line) for line in said]


def clock_text(seconds: float) -> str:
    """Minutes and seconds, hours where there are any.

    >>> clock_text(95.2), clock_text(3725)
    ('1:35', '1:02:05')
    """
    text = str(timedelta(seconds=round(seconds)))
    return text[3:] if text.startswith("0:0") else text.removeprefix("0:")
