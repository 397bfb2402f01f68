"""Arguments of a type, or a number of a size, that nothing could be done with: one line that names them, before anything is done."""

from __future__ import annotations

import inspect
import math
import numbers
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from adapruner.errors import ConfigurationError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    types.NoneType: "None",
}
#: What random generators take as a seed.
MOST_SEED = 2**32 - 1


def typed(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function that refuses arguments of another type than it declares.

    >>> @typed
    ... def repeat(text: str, times: int = 2) -> str:
    ...     return text * times
    >>> repeat("a", times="3")
    Traceback (most recent call last):
    adapruner.errors.ConfigurationError: times: expected a whole number, got '3'; give one
    """
    return typed_as("")(function)


def typed_as(prefix: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """As :func:`typed`, with what a function's arguments are called by before their names, such as ``report.``."""

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)

        @wraps(function)
        def checked(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            check_call(function, signature.bind_partial(*arguments, **options).arguments, prefix)
            return function(*arguments, **options)

        return checked

    return decorate


def check_call(function: Any, arguments: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses arguments of another type than a function declares, where :func:`typed` would hide them from the parser of options.

    Args:
        arguments: by name, such as ``locals()`` before anything else is in it; other names are passed over.

    Raises:
        ConfigurationError: naming the first.
    """
    hints, parameters = _hints(function), inspect.signature(function).parameters
    for name, value in arguments.items():
        if name in hints and name in parameters and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
            check_type(f"{prefix}{name}", value, hints[name])


def check_fields(record: Any, prefix: str = "", but: Collection[str] = ()) -> None:
    """Refuses a record, a dataclass, that has a value of another type than its field declares.

    Args:
        prefix: what its options are called by, such as ``search.``.
        but: fields that somebody else checks.

    Raises:
        ConfigurationError: naming the first such field.
    """
    hints: dict[str, Any] = _hints(type(record))  # type: ignore[arg-type]
    for field in fields(record):
        if field.name not in but:
            check_type(f"{prefix}{field.name}", getattr(record, field.name), hints[field.name])


def check_type(argument: str, value: Any, hint: Any) -> None:
    """Refuses a value that is not of a type.

    Raises:
        ConfigurationError: if it is not; ``True`` is no number.
    """
    if _is(value, hint):
        return
    for part in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(part) in (list, Sequence) and isinstance(value, list | tuple):
            (inner,) = get_args(part)
            return check_type(argument, next(item for item in value if not _is(item, inner)), inner)
    raise ConfigurationError(f"{argument}: expected {_words(hint)}, got {got(value)}; give one")


def check_seed(argument: str, value: Any) -> None:
    """Refuses what a generator of random numbers does not take as a seed.

    Raises:
        ConfigurationError: if it is no whole number from 0 to 2**32 - 1.
    """
    if not _is(value, int) or not 0 <= value <= MOST_SEED:
        raise ConfigurationError(f"{argument}: expected a whole number from 0 to 2**32 - 1, got {got(value)}; give 0")


def check_between(argument: str, value: Any, low: float, high: float) -> None:
    """Refuses a number outside of bounds, and what is no number.

    Raises:
        ConfigurationError: with the bounds.
    """
    if not _is(value, float) or not math.isfinite(value) or not low <= value <= high:
        raise ConfigurationError(f"{argument}: expected a number from {low:g} to {high:g}, got {got(value)}; give one in between")


def got(value: Any, most: int = 80) -> str:
    """A value as a message shows it, cut short; never an error.

    >>> got("a" * 100, 10)
    "'aaaaaa..."
    """
    try:
        text = repr(value)
    except Exception:  # a number of too many digits, or an object that cannot be shown
        text = f"a value of {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else f"{text[: most - 3]}..."


@cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


def _is(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is(value, part) for part in inner)
    if origin is Literal:
        return any(type(value) is type(part) for part in inner)  # which of them: said by whoever knows the nearest
    if hint is Any or isinstance(hint, TypeVar) or getattr(hint, "_is_protocol", False):
        return True
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    kind = origin or hint
    if kind is Callable:
        return callable(value)
    if kind in (list, Sequence, Iterable, tuple):
        whole = isinstance(value, list | tuple) if kind is not Iterable else isinstance(value, Iterable)
        return whole and not isinstance(value, str) and (kind is Iterable or not inner or all(_is(item, inner[0]) for item in value))
    if kind in (dict, Mapping):
        return isinstance(value, Mapping) and (not inner or all(_is(k, inner[0]) and _is(v, inner[1]) for k, v in value.items()))
    return not isinstance(kind, type) or isinstance(value, kind)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = [part for part in inner if part is not str or Path not in inner]
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    kind = origin or hint
    if kind in (list, Sequence, Iterable, tuple):
        return f"a list of {_words(inner[0]).removeprefix('a ')}s" if inner and inner[0] in (int, float) else "a list"
    if kind in (dict, Mapping):
        return "a mapping"
    if kind is Callable:
        return "a function"
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
