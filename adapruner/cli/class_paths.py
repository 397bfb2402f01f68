"""What a configuration may have made: objects of the classes that its options are of, and nothing else.

The parser of options calls whatever a ``class_path`` names where it knows no better, a function of the operating system, too. A
configuration is meant to be handed on: what it names is imported, from what is installed, and checked here before anything is called.
Functions are taken from modules that the command line itself imports (``--import``).
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from adapruner.cli.imports import is_imported

_PLAIN = (int, float, bool, str, bytes, complex, NoneType, list, dict, tuple, set, frozenset, type, object, Any, Callable)


def set_parser_limits() -> None:
    """From here on the parser makes no object where any value may stand, refuses its list of modules, and reads local files alone."""
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=[],  # enforces the library's own
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )


@contextmanager
def installed_only() -> Iterator[None]:
    """Inside the block a module is not found for lying in the working directory, where a handed-over configuration may lie, too."""
    before, here = list(sys.path), os.path.realpath(".")
    sys.path[:] = [entry for entry in before if entry and os.path.realpath(entry) != here]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before + [entry for entry in sys.path if entry not in before]


def classes_in(hint: Any, *, items: bool = True) -> tuple[type, ...]:
    """The classes of the objects that a type stands for: its own, those of a union, what a callable returns.

    Args:
        items: those of a container's items, too.

    >>> classes_in(list[ArgumentParser] | Callable[[int], Namespace] | None)
    (<class 'jsonargparse._core.ArgumentParser'>, <class 'jsonargparse._namespace.Namespace'>)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal or (not items and isinstance(origin, type) and issubclass(origin, Iterable)):
        return ()
    if origin is Callable:
        return classes_in(arguments[-1], items=items) if arguments else ()
    if arguments:
        own = (origin,) if isinstance(origin, type) and origin not in _PLAIN and not issubclass(origin, Iterable | UnionType) else ()
        return own + tuple(kind for argument in arguments for kind in classes_in(argument, items=items))
    return (hint,) if isinstance(hint, type) and hint not in _PLAIN else ()


def parser_of(kind: type) -> ArgumentParser:
    """A parser of the options that a class takes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False)
    return parser


def find_class(path: str, bases: tuple[type, ...]) -> type | str:
    """The class of a path, or of the name of a known subclass; what is wrong with the path, in words."""
    module, _, name = path.rpartition(".")
    known = {kind.__name__: kind for base in bases for kind in _subclasses(base)}
    found: Any = None
    if not module and name in known:
        found = known[name]
    else:
        try:
            holder: Any = importlib.import_module(module)
        except Exception:  # it may fail in any way
            return f"expected the path of a class, such as torch.optim.AdamW, got {path!r:.100}; correct it"
        if not hasattr(holder, name):
            close = get_close_matches(name, [word for word in vars(holder) if word[0].isupper()], n=1)
            hint = f"did you mean {module}.{close[0]}?" if close else "correct the name"
            return f"expected a class of {module}, got {name!r:.100}; {hint}"
        found = getattr(holder, name)
    return found if inspect.isclass(found) and issubclass(found, bases) else not_a_class(path, bases)


def not_a_class(path: str, bases: tuple[type, ...]) -> str:
    """What is said of something that a configuration must not have called."""
    names = " or ".join(dict.fromkeys(base.__name__ for base in bases))
    what = f"a subclass of {names}" if bases else "no function"
    return f"expected {what}, got {path!r:.100}; name such a class, or a function of a file that --import names"


def class_faults(parser: ArgumentParser, config: Namespace, prefix: str = "") -> Iterator[str]:
    """One line for each value of a parsed configuration that would call something else than a class of the option's own kind."""
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is not None and not action.dest.endswith(".help"):
            yield from _value_faults(f"{prefix}{action.dest}", config.get(action.dest), hint, action.default)


def _value_faults(name: str, value: Any, hint: Any, default: Any = None) -> Iterator[str]:
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _value_faults(name, item, hint)
    elif isinstance(value, Namespace | Mapping):
        yield from _mapping_faults(name, dict(value) if isinstance(value, Mapping) else vars(value), hint)
    elif callable(value) and not isinstance(value, type):
        bases, module = classes_in(hint), str(getattr(value, "__module__", ""))
        path = f"{module}.{getattr(value, '__qualname__', type(value).__name__)}"
        if default not in (value, path) and not is_imported(module) and not (bases and isinstance(value, bases)):
            yield f"{name}: {not_a_class(path, bases)}"


def _mapping_faults(name: str, value: dict[str, Any], hint: Any) -> Iterator[str]:
    bases, path = classes_in(hint), value.get("class_path")
    if isinstance(path, str):
        if not bases and not _may_be_called(hint):
            return  # where any value may stand it stays a mapping
        kind = find_class(path, bases)
        if isinstance(kind, str):
            if not is_imported(path.rpartition(".")[0]):
                yield f"{name}: {kind}"
        else:
            yield from class_faults(parser_of(kind), Namespace(value.get("init_args") or {}), f"{name}.")
    elif len(bases) == 1 and is_dataclass(bases[0]):
        yield from class_faults(parser_of(bases[0]), Namespace(value), f"{name}.")
    else:
        for item in value.values():
            yield from _value_faults(name, item, hint)


def _may_be_called(hint: Any) -> bool:
    return Callable in (hint, get_origin(hint)) or any(_may_be_called(part) for part in get_args(hint))


def _subclasses(base: type) -> Iterator[type]:
    kind: type
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)
