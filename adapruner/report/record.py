"""Writes and reads the report's files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.files.atomic import write_atomically
from adapruner.report.page import render_page
from adapruner.report.schema import validate_report

RECORD_NAME = "report.json"
PAGE_NAME = "report.html"


def write_report(report: Mapping[str, Any], folder: str | Path) -> None:
    """Writes ``report.json`` and ``report.html`` into a folder, which is made if needed.

    JSON has no NaN and no infinity: numbers that are not finite are written as ``null``.

    Raises:
        ConfigurationError: if the report lacks a key or holds a value that JSON cannot, before anything is written.
    """
    validate_report(report)
    record = _plain(report, "report")
    text, page = json.dumps(record, indent=1, ensure_ascii=False) + "\n", render_page(record)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigurationError(f"folder: expected a folder, got the file {folder}; give another path") from None
    write_atomically(folder / RECORD_NAME, text)
    write_atomically(folder / PAGE_NAME, page)


def read_report(path: str | Path) -> dict[str, Any]:
    """The validated dictionary of a ``report.json``, or of the folder that holds one.

    Raises:
        ConfigurationError: if the file is missing, is not JSON, or is not a report.
    """
    path = Path(path)
    path = path / RECORD_NAME if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"path: expected a readable {RECORD_NAME}, got {error.strerror} for {path}; give its path") from None
    except ValueError as error:
        raise ConfigurationError(f"path: expected JSON in {path}, got damage ({error}); restore the file or run again") from None
    validate_report(report)
    return dict(report)


def _plain(value: Any, where: str) -> Any:
    """JSON types only, so that NumPy scalars, tuples and paths are written as what they mean."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ConfigurationError(f"{where}: expected a JSON value, got {type(value).__name__}; convert it to a number or text")
