"""Where an export may go, and how it gets there: filled out of sight, moved into place as a whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapruner.errors import ConfigurationError
from adapruner.files.atomic import clear_leftovers, marked, replace_folder, writing
from adapruner.files.digests import SUMS
from adapruner.files.folder_lock import no_empty_folders
from adapruner.pruning.plan import MARK

_PLAN = "plan.json"


@contextmanager
def scratch_beside(place: Path, name: str | None = None) -> Iterator[Path]:
    """A path to fill, on the file system of ``place`` and of its name or another; gone after the block if it was not moved away.

    What a killed process left of the same place goes, and what it had moved aside comes back.

    Raises:
        ConfigurationError: if there is no writing there.
    """
    beside = marked(place, "new")
    with no_empty_folders(place.parent), writing(place, remedy="make room there or choose another"):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(place.parent, place.name)
            beside.mkdir()
            yield beside / (name or place.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A path to fill, of the same name as ``folder``; in its place after the block, gone if the block fails.

    Raises:
        ConfigurationError: if there is no writing there, or ``folder`` holds, or came to hold meanwhile, something else.
    """
    folder = Path(os.path.realpath(folder))
    check_folder(folder)
    with scratch_beside(folder) as new:
        yield new
        check_folder(folder)
        replace_folder(new, folder)


def check_folder(folder: str | Path) -> None:
    """Refuses a place that cannot be written, or is taken by something other than an earlier export; writes nothing.

    Raises:
        ConfigurationError: in these cases.
    """
    folder = Path(folder)
    check_parent(folder, "folder")
    if folder.is_symlink() and not folder.exists():
        raise ConfigurationError(f"folder: expected a folder, got the link {folder}, which leads nowhere; remove it or choose another name")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise ConfigurationError(f"folder: expected a folder, got the file {folder}; choose another name")
    if (folder / ".git").exists():  # replaced as a whole, it would lose its history
        raise ConfigurationError(f"folder: expected a plain folder, got the git repository {folder}; export elsewhere and copy")
    if not is_export(folder):
        raise ConfigurationError(
            f"folder: expected an empty folder or an earlier export, got other files in {folder}; choose another folder"
        )


def check_parent(path: Path, argument: str) -> None:
    """Refuses a path whose nearest existing parent is no folder that can be written.

    Raises:
        ConfigurationError: naming ``argument``.
    """
    parent = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "a folder without the right to write" if parent.is_dir() else "a file"
        raise ConfigurationError(f"{argument}: expected a place that can be written, got {what}, {parent}, above {path}; choose another")


def check_no_export(folder: Path) -> None:
    """Refuses an export as a run folder: the next export there would replace it as a whole, and the run with it. Any other model, too:
    whoever deletes the run to begin again would delete the model.

    Raises:
        ConfigurationError: if the folder is one of them.
    """
    if is_export(folder):
        raise ConfigurationError(f"folder: expected a run folder, got the export {folder}; choose another folder for the run")
    if holds_model(folder):
        raise ConfigurationError(f"folder: expected a run folder, got the folder of a model, {folder}; choose another folder for the run")


def holds_model(folder: Path) -> bool:
    """Whether ``config.json`` is a model's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def is_export(folder: Path) -> bool:
    """Whether ``config.json`` carries our mark, or, where it is damaged, the rest of the folder does."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get(MARK), dict):
            return True
    except (OSError, ValueError):
        pass
    return os.path.lexists(folder / SUMS) and os.path.lexists(folder / _PLAN)
