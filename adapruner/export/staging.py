"""A folder that is filled out of sight and moved into place as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapruner.errors import ConfigurationError
from adapruner.export.folder import check_folder
from adapruner.files.atomic import replace_folder


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A path to fill, of the same name as ``folder``; in its place after the block, gone if the block fails.

    Raises:
        ConfigurationError: if there is no writing there, or ``folder`` came to hold something else meanwhile.
    """
    from safetensors import SafetensorError

    check_place(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        yield beside / folder.name
        check_folder(folder)
        replace_folder(beside / folder.name, folder)
    except (OSError, SafetensorError) as error:  # a full disk is the one or the other
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"folder: expected to write {folder}, got {reason}; make room there or choose another") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Refuses a place that cannot be written or is taken by something other than an earlier export; writes nothing.

    Raises:
        ConfigurationError: in these cases.
    """
    check_folder(folder)
    check_parent(folder, "folder")


def check_parent(path: Path, argument: str) -> None:
    """Refuses a path whose nearest existing parent is no folder that can be written.

    Raises:
        ConfigurationError: naming ``argument``.
    """
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "a folder without the right to write" if parent.is_dir() else "a file"
        raise ConfigurationError(f"{argument}: expected a place that can be written, got {what}, {parent}, above {path}; choose another")
