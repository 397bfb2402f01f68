"""What a run says on the terminal: one line per decision, one bar per long stage; silent on all ranks but the first."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from adapruner.distributed import is_rank_zero
from adapruner.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

#: Whether anything is printed at all.
_SHOWN: ContextVar[bool] = ContextVar("shown", default=True)


@contextmanager
def shown(yes: bool) -> Iterator[None]:
    """Inside the block bars and lines are printed, or not."""
    token = _SHOWN.set(yes)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def _silent() -> bool:
    return not _SHOWN.get() or not is_rank_zero()


def terminal(**options: Any) -> Console:
    """Where everything is printed that may hold names or text from a file: printable characters that the output can encode.

    Args:
        options: as of :class:`rich.console.Console`.
    """
    state = random.getstate()
    from rich.console import Console
    from rich.segment import Segment

    random.setstate(state)  # which the library's import moves

    class Terminal(Console):
        def render(self, *renderable: Any, **how: Any) -> Iterator[Segment]:
            for segment in super().render(*renderable, **how):
                yield segment if segment.control else Segment(self.shown(segment.text), segment.style)

        def shown(self, text: str) -> str:
            return printable(text).encode(self.encoding, "replace").decode(self.encoding)

    return Terminal(**options)


def announce(message: str) -> None:
    """One plain line."""
    if not _silent():
        terminal(soft_wrap=True, highlight=False).print(f"adapruner: {message}", markup=False)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with time left, on a terminal and in a notebook; yields ``advance(done, note="")``. Elsewhere ten plain lines instead."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if _silent():
        yield lambda done, note="": None
        return
    console = terminal()
    if not console.is_terminal and not console.is_jupyter:
        yield _lines(title, total, console)
        return
    columns = (
        TextColumn("{task.description:<14}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda done, note="": progress.update(task, completed=done, note=note)


@contextmanager
def late_progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that appears with its first step, for work that there may be none of; yields ``advance(done, total, note)``."""
    with ExitStack() as stack:
        bar: list[Callable[..., None]] = []

        def advance(done: int, total: int, note: str) -> None:
            if not bar:
                bar.append(stack.enter_context(progress_bar(title, total)))
            bar[0](done, note)

        yield advance


def _lines(title: str, total: int, console: Console) -> Callable[..., None]:
    shown = -1

    def advance(done: int, note: str = "") -> None:
        nonlocal shown
        tenth = done * 10 // max(1, total)
        if tenth > shown or done >= total:
            shown = tenth
            console.print(f"{title}: {done} of {total} {note}".rstrip(), markup=False, highlight=False, soft_wrap=True)
            console.file.flush()

    return advance
