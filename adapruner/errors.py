"""The errors adapruner raises on purpose.

Every message is one line with four parts: the argument, what was expected, what came, and the remedy.
The command line prints them without a traceback; anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

#: Layout of plain text, and what joins letters in some scripts.
_SHOWN = "\n\t\u200c\u200d"
#: Options that were written by a shorter name -> that name.
_SHORTENED: ContextVar[Mapping[str, str] | None] = ContextVar("shortened", default=None)


class AdaPrunerError(Exception):
    """Base of every error that is the caller's to mend. The message is always a single line.

    >>> str(AdaPrunerError("budget: expected 0.2,   got 2; give 0.2"))
    'budget: expected 0.2, got 2; give 0.2'
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(as_written(message).split())))


@contextmanager
def written_as(names: Mapping[str, str]) -> Iterator[None]:
    """Inside the block errors and what is announced call options as they were written.

    Args:
        names: option -> its short name: ``{"search.n_trials": "trials"}``. One without a dot is only called so where it begins a message.

    >>> with written_as({"search.n_trials": "trials"}):
    ...     print(AdaPrunerError("pruning.search.n_trials: expected 1 or more, got 0; give 64"))
    trials: expected 1 or more, got 0; give 64
    """
    token = _SHORTENED.set({**(_SHORTENED.get() or {}), **names})
    try:
        yield
    finally:
        _SHORTENED.reset(token)


def is_shortened(option: str) -> bool:
    """Whether an option was written by a short name, so that nothing else of its section was written either."""
    return option in (_SHORTENED.get() or {})


def as_written(text: str) -> str:
    """A text with the short names of options in the place of theirs."""
    for option, short in sorted((_SHORTENED.get() or {}).items(), key=lambda pair: -len(pair[0])):
        word = re.escape(option)
        pattern = rf"(?<![\w.])(?:pruning\.)?{word}(?![\w]|\.\w)" if "." in option else rf"^{word}(?=[:,])"
        text = re.sub(pattern, lambda _, short=short: short, text)  # type: ignore[misc]
    return text


def printable(text: str) -> str:
    r"""Text as a terminal may show it: what came from a file may hold sequences that a terminal obeys, or hide what it says.

    >>> printable("a\x1b[2Jb\u202ec é 漢 \ud800")
    'a\\x1b[2Jb\\u202ec é 漢 \\ud800'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SHOWN or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)


class ConfigurationError(AdaPrunerError, ValueError):
    """An argument is out of range, unknown, or contradicts another."""


class DataError(AdaPrunerError, ValueError):
    """Text is missing, empty, too short, or not where it should be."""


class ModelError(AdaPrunerError, ValueError):
    """The model cannot be loaded, traced or pruned as asked."""


class PlanError(AdaPrunerError, ValueError):
    """A pruning plan is damaged, of another version, or made for another model."""


class BudgetError(AdaPrunerError, ValueError):
    """No plan can reach the budget that was asked for."""


class StudyError(AdaPrunerError, RuntimeError):
    """The search cannot start, or cannot go on from the journal it found."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, then all of them.

    >>> nearest("talyor", ["l2", "taylor"])
    "did you mean 'taylor'? Known: l2, taylor"
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


def together(errors: Sequence[AdaPrunerError]) -> AdaPrunerError:
    """One error as it is, several as one whose line has them all.

    >>> together([DataError("a: expected 1, got 2; give 1"), BudgetError("b: expected 3, got 4; give 3")])
    ConfigurationError('2 things to mend: (1) a: expected 1, got 2; give 1 (2) b: expected 3, got 4; give 3')
    """
    distinct = list({str(error): error for error in errors}.values())
    if len(distinct) == 1:
        return distinct[0]
    listed = " ".join(f"({number}) {error}" for number, error in enumerate(distinct, start=1))
    kinds = {type(error) for error in distinct}
    return (kinds.pop() if len(kinds) == 1 else ConfigurationError)(f"{len(distinct)} things to mend: {listed}")


def check_all(*checks: Callable[[], object]) -> None:
    """Calls independent checks, all of them, and raises what they raised, together."""
    found: list[AdaPrunerError] = []
    for check in checks:
        try:
            check()
        except AdaPrunerError as error:
            found.append(error)
    if found:
        raise together(found)
