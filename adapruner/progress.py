"""What a run says: one line per decision, one bar per long stage, and all of it in a log; silent on all ranks but the first.

The log is the one of Python's :mod:`logging` by the name ``adapruner``; a run folder has it as ``run.log``.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapruner.distributed import is_rank_zero
from adapruner.errors import as_written, printable
from adapruner.log_streams import logs_above_bars

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.segment import Segment

LOG = logging.getLogger("adapruner")
RUN_LOG = "run.log"
"""What a run said, in its folder."""
#: Seconds after which a long stage says where it is, whatever it has done since; and between two lines at least.
LINE_EVERY, LINES_APART = 30.0, 1.0
#: Whether anything is printed at all.
_SHOWN: ContextVar[bool] = ContextVar("shown", default=True)
#: Whether stages have bars where they can be drawn.
_WITH_BARS: ContextVar[bool] = ContextVar("with_bars", default=True)
#: What draws the bar of the stage that is at work.
_BARS: ContextVar[Progress | None] = ContextVar("bars", default=None)


@contextmanager
def shown(yes: bool) -> Iterator[None]:
    """Inside the block bars and lines are printed, or not."""
    token = _SHOWN.set(yes)
    try:
        yield
    finally:
        _SHOWN.reset(token)


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside the block stages have plain lines in the place of bars, as where there is no terminal."""
    if not _WITH_BARS.get():  # a block within another may end after it
        yield
        return
    token = _WITH_BARS.set(False)
    try:
        yield
    finally:
        _WITH_BARS.reset(token)


def is_shown() -> bool:
    """Whether bars and lines are printed here: on the first rank, unless a run was asked to be silent."""
    return _SHOWN.get() and is_rank_zero()


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


class _LogFile(logging.FileHandler):
    """A log that cannot be written any more ends nothing: a full disk is told by what has to be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing, where the library prints a traceback."""

    def close(self) -> None:
        """Closes the file; what could not be written is gone."""
        with suppress(OSError):
            super().close()


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Inside the block everything that is said is appended to a file as well, with the time; on the first rank alone."""
    if not is_rank_zero():
        yield
        return
    try:
        handler = _LogFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:  # a folder in its place, say
        announce(f"keeps no log: {file} cannot be written ({error.strerror})")
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = LOG.level, LOG.propagate
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before[0])
        LOG.propagate = before[1]
        handler.close()


def announce(message: str) -> None:
    """One plain line; a terminal that is too narrow for it has as many as it takes, which end at words."""
    message = as_written(message)
    if is_rank_zero():
        LOG.info(printable(message))
    if is_shown():
        console = terminal(highlight=False)
        with console.capture() as line:
            console.print(f"adapruner: {message}", markup=False, soft_wrap=not console.is_terminal)
        print(line.get(), end="", flush=True)  # a console would write past whoever draws a bar, into the bar's line


class Advance(Protocol):
    """How far a stage is."""

    def __call__(self, done: int, note: str = "") -> None:
        """So much is done."""

    def below(self, said: Sequence[str]) -> None:
        """What is at work now: lines under a bar; without one, plain lines every half a minute."""


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """A bar with time spent and left, on a terminal and in a notebook; yields ``advance(done, note="")``. Elsewhere plain lines, as the log
    has. Nothing where there is nothing to do."""
    console = terminal() if is_shown() and total else None
    if console is None or not _has_bars(console):
        yield _Lines(title, total, console)
        return
    lines, around = _Lines(title, total, None), _BARS.get()
    with _drawn(console, title) if around is None else nullcontext(around) as bars:
        task = bars.add_task(title, total=total, note="")

        class Drawn:
            def __call__(self, done: int, note: str = "") -> None:
                bars.update(task, completed=done, note=note)
                lines(done, note)

            def below(self, said: Sequence[str]) -> None:
                bars.below = list(said)  # type: ignore[attr-defined]

        try:
            yield Drawn()
        finally:
            if around is not None:  # a stage within another: below its bar, and gone with its end; two displays would overwrite each other
                bars.remove_task(task)


@contextmanager
def _drawn(console: Console, title: str) -> Iterator[Progress]:
    """The display of a stage's bar, of those within it, and of lines below them."""
    from rich.progress import Progress

    from adapruner.bar_columns import bar_columns, note_column, one_line_each

    class Bars(Progress):
        below: Sequence[str] = ()

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            yield from one_line_each(self.below)

    with logs_above_bars(), Bars(*bar_columns(console.width, title), note_column(), console=console, expand=True) as bars:
        token = _BARS.set(bars)
        try:
            yield bars
        finally:
            _BARS.reset(token)


@contextmanager
def late_progress_bar(title: str, before: Callable[[], None]) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that appears with its first step, for work that there may be none of; yields ``advance(done, total, note)``.

    Args:
        before: called before it appears; ends the bar of the stage that it follows.
    """
    with ExitStack() as stack:
        bar: list[Callable[..., None]] = []

        def advance(done: int, total: int, note: str) -> None:
            if not bar:
                before()
                bar.append(stack.enter_context(progress_bar(title, total)))
            bar[0](done, note)

        yield advance


def plain_lines(title: str, total: int | None) -> Callable[..., None]:
    """``advance(done, note="")`` for work that somebody else draws a bar of: lines in the log, and where there can be no bar.

    Args:
        total: ``None`` where no one knows.
    """
    console = terminal() if is_shown() else None
    return _Lines(title, total, None if console is None or _has_bars(console) else console)


def _has_bars(console: Console) -> bool:
    return _WITH_BARS.get() and (console.is_terminal or console.is_jupyter)


class _Lines:
    """Where a stage is, in plain lines: at every tenth and twice a minute, with the time spent and what it will take at this pace.

    Args:
        total: ``None`` where no one knows.
        console: where they are printed, besides the log; ``None``: nowhere.
    """

    def __init__(self, title: str, total: int | None, console: Console | None) -> None:
        self.title, self.total, self.console = title, total, console
        self._tenth, self._said = -1, float("-inf")
        self._began = self._said_below = time.monotonic()
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, note: str = "") -> None:
        """So much is done."""
        now, total = time.monotonic(), self.total
        if self._first is None:  # a resumed stage begins in the middle: its pace is known from the second call on
            self._first = now, done
        tenth = -1 if total is None else done * 10 // max(1, total)
        ended = total is not None and done >= total
        if not ended and (now - self._said < LINES_APART or (tenth <= self._tenth and now - self._said < LINE_EVERY)):
            return
        self._tenth, self._said = tenth, now
        where = f"{self.title}: {done}" if total is None else f"{self.title}: {done} of {total}"
        self._say(", ".join(part for part in (where, self._spent(now), self._left(now, done), note) if part))

    def below(self, said: Sequence[str]) -> None:
        """What is at work, each in a line, every half a minute."""
        now = time.monotonic()
        if said and now - self._said_below >= LINE_EVERY:
            self._said_below = now
            for line in said:
                self._say(line)

    def _spent(self, now: float) -> str:
        return f"after {timedelta(seconds=round(now - self._began))}" if now - self._began >= 1 else ""

    def _left(self, now: float, done: int) -> str:
        began, first = self._first or (now, done)
        if self.total is None or not first < done < self.total:
            return ""
        seconds = (now - began) / (done - first) * (self.total - done)
        return f"{timedelta(seconds=round(seconds))} left" if seconds >= 1 else ""

    def _say(self, line: str) -> None:
        if is_rank_zero():
            LOG.info(printable(line))
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.console.file.flush()
