"""What a run says on the terminal: one line per decision, one bar per long stage; silent on all ranks but the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from adapruner.distributed import is_rank_zero

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


def announce(message: str) -> None:
    """One plain line."""
    if _silent():
        return
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(f"adapruner: {message}", markup=False)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with time left, on a terminal and in a notebook; yields ``advance(done, note="")``. Elsewhere ten plain lines instead."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if _silent():
        yield lambda done, note="": None
        return
    console = Console()
    if not console.is_terminal and not console.is_jupyter:
        yield _lines(title, total)
        return
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
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


def _lines(title: str, total: int) -> Callable[..., None]:
    shown = -1

    def advance(done: int, note: str = "") -> None:
        nonlocal shown
        tenth = done * 10 // max(1, total)
        if tenth > shown or done >= total:
            shown = tenth
            print(f"{title}: {done} of {total} {note}".rstrip(), flush=True)

    return advance
