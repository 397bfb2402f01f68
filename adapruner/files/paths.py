"""Names that no local file or folder can have, refused where they are given."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError

_MOST_OF_A_NAME, _MOST = 255, 4096


def check_path(argument: str, path: Any) -> None:
    """Whether a path can be a local one; ``None`` passes.

    >>> check_path("folder", "s3://bucket/run")
    Traceback (most recent call last):
    adapruner.errors.ConfigurationError: folder: expected a local path, got 's3://bucket/run'; copy it here, or mount it

    Raises:
        ConfigurationError: if it is a URL, has a character that no name has, or is longer than a name may be.
    """
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"{argument}: expected a path, got {path!r:.80}; give one")
    text = str(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ConfigurationError(f"{argument}: expected a local path, got {text!r:.100}; copy it here, or mount it")
    if "\0" in text:
        raise ConfigurationError(f"{argument}: expected a path, got {text!r:.80} with a NUL in it; correct it")
    _check_names(argument, text)


def check_folder_path(argument: str, path: Any) -> None:
    """Whether a folder can be made at a path, or is there; ``None`` passes.

    Raises:
        ConfigurationError: as :func:`check_path`, or if a file or a link that leads nowhere is in its way.
    """
    check_path(argument, path)
    if path is None:
        return
    for part in (Path(path), *Path(path).parents, *Path(path).absolute().parents):
        if os.path.lexists(part) and not part.is_dir():
            what = "a file" if part.exists() else "a link that leads nowhere"
            raise ConfigurationError(f"{argument}: expected a folder, got {what}, {part}, in the way of {str(path)!r}; choose another")


def _check_names(argument: str, text: str) -> None:
    longest = max((len(os.fsencode(part)) for part in Path(text).parts), default=0)
    if longest > _MOST_OF_A_NAME or len(os.fsencode(text)) >= _MOST:
        raise ConfigurationError(
            f"{argument}: expected a path that a file system takes, got one of {len(text)} characters, {text!r:.40}...; shorten it"
        )
