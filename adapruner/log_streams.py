"""Where the handlers of the log write: above a bar that is drawn, and not into its line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Redirected:
    """The standard stream of this moment, in the place of the one that a handler of the log was made with."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(sys, self.name), attribute)


@contextmanager
def logs_above_bars() -> Iterator[None]:
    """Inside the block what any library logs on the terminal stands above a bar that is drawn there, in a line of its own.

    Who draws a bar takes the standard streams over for as long; a handler of the log that holds one from before writes into the bar's line,
    which is then drawn a second time below. A log that goes into a file stays there.
    """
    names = {id(getattr(sys, name)): name for name in ("stdout", "stderr") if _is_terminal(getattr(sys, name))}
    moved = [(handler, handler.stream) for handler in _stream_handlers() if id(vars(handler).get("stream")) in names]  # it may look it up
    for handler, stream in moved:
        handler.stream = _Redirected(names[id(stream)])
    try:
        yield
    finally:
        for handler, stream in moved:
            if isinstance(handler.stream, _Redirected):  # else somebody gave it another meanwhile
                handler.stream = stream


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    loggers = [logging.root, *(one for one in list(logging.root.manager.loggerDict.values()) if isinstance(one, logging.Logger))]
    found = {id(handler): handler for logger in loggers for handler in logger.handlers if isinstance(handler, logging.StreamHandler)}
    return list(found.values())


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # none at all, or closed
        return False
