"""Writes and reads the report's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import DamagedError, opened, sealed
from adapruner.report.schema import Report, validate_report

RECORD_NAME = "report.json"
PAGE_NAME = "report.html"


#: Bytes that V8 reserves, and a little more; it uses next to none of them.
_ADDRESS_SPACE = 66 * 2**30


def write_report(record: Mapping[str, Any] | Report, folder: str | Path) -> Report:
    """Writes ``report.json`` and ``report.html`` into a folder, which is made if needed, and returns the validated report.

    Raises:
        ConfigurationError: if the report lacks a key or holds a value that JSON cannot, before anything is written.
    """
    from adapruner.report.page import render_report

    report = validate_report(record)
    text, page = json.dumps(sealed(report.to_dict()), indent=1, ensure_ascii=False) + "\n", render_report(report)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigurationError(f"folder: expected a folder, got the file {folder}; give another path") from None
    write_atomically(folder / RECORD_NAME, text)
    write_atomically(folder / PAGE_NAME, page)
    return report


def check_can_draw(remedy: str = "lift it, or give --report null") -> None:
    """Whether this process may reserve the address space that the engine behind the page's charts wants: without it, it ends the process.

    Raises:
        ConfigurationError: where the system limits it (``ulimit -v``), before hours of work instead of after them.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE:
        got = f"{limit / 2**30:.1f} GiB (ulimit -v)"
        raise ConfigurationError(
            f"report: expected an address space of 64 GiB or more for the page's charts, got a limit of {got}; {remedy}"
        )


def read_report(path: str | Path) -> Report:
    """The report of a ``report.json``, or of the folder that holds one.

    Raises:
        ConfigurationError: if the file is missing, is not JSON, or is not a report.
    """
    path = Path(path)
    path = path / RECORD_NAME if path.is_dir() else path
    try:
        record = opened(json.loads(path.read_text(encoding="utf-8")), may_lack=True)
    except DamagedError as error:
        raise ConfigurationError(f"path: expected the report that a run wrote in {path}, got another ({error}); run again") from None
    except OSError as error:
        raise ConfigurationError(f"path: expected a readable {RECORD_NAME}, got {error.strerror} for {path}; give its path") from None
    except ValueError as error:
        raise ConfigurationError(f"path: expected JSON in {path}, got damage ({error}); restore the file or run again") from None
    return validate_report(record)
