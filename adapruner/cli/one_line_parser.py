"""The parser of a command with a few options of its own: what is wrong with them is our one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from adapruner.errors import ConfigurationError


class OneLineParser(argparse.ArgumentParser):
    """``argparse``'s, with one line in the place of its usage and its exit.

    Args:
        command: behind ``adapruner``.
        words: what stands behind that, for the line.
        options: as of :class:`argparse.ArgumentParser`.

    >>> OneLineParser("show", "RUN").parse_args(["--jsn"])
    Traceback (most recent call last):
    adapruner.errors.ConfigurationError: show: expected adapruner show RUN, got unrecognized arguments: --jsn; see adapruner show --help
    """

    def __init__(self, command: str, words: str, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"adapruner {command}", formatter_class=form, allow_abbrev=False, **options)
        self._command, self._words = command, words

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong."""
        command = f"adapruner {self._command}"
        raise ConfigurationError(f"{self._command}: expected {command} {self._words}, got {message}; see {command} --help")
