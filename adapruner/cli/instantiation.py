"""Makes the objects of a configuration, so that errors in several of its sections come together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from adapruner.errors import AdaPrunerError, ConfigurationError, together


class Instantiation:
    """Makes objects for the parser and keeps errors until :meth:`check`, which raises them all; later ones are raised at once.

    Later ones: an optimizer is made when training begins.
    """

    def __init__(self) -> None:
        self.errors: list[AdaPrunerError] = []
        self.checked = False

    def check(self) -> None:
        """Raises what went wrong so far."""
        if self.errors:
            raise together(self.errors)
        self.checked = True

    def collecting(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """An instantiator of the parser that works as ``make``; an object is not made where one of its parts could not be."""

        def instantiate(kind: type, /, *arguments: Any, applied_instantiation_links: dict[str, Any], **options: Any) -> Any:
            parts = [part for value in (*arguments, *options.values()) for part in (value if isinstance(value, list) else [value])]
            if any(isinstance(part, _NotMade) for part in parts):
                return _NotMade()
            try:
                return make(kind, *arguments, applied_instantiation_links=applied_instantiation_links, **options)
            except AdaPrunerError as error:
                if self.checked:
                    raise
                self.errors.append(error)
                return _NotMade()

        return instantiate


class _NotMade:
    """Stands where an object would be whose options are wrong."""


def make_plainly(kind: type, /, *arguments: Any, applied_instantiation_links: dict[str, Any], **options: Any) -> Any:
    """The parser's own way of making an object; an error of another library's class becomes ours."""
    if kind.__module__.startswith("adapruner"):
        return kind(*arguments, **options)
    with one_line(kind.__name__, (ValueError, TypeError)):
        return kind(*arguments, **options)


@contextmanager
def one_line(what: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Makes another library's errors of these kinds one of ours."""
    try:
        yield
    except AdaPrunerError:
        raise
    except kinds as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"{what}: expected options that it takes, got: {reason}; correct them") from error
