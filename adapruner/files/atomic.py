"""Files that are never seen half-written, and what a killed process left of those it was writing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: ``.NAME.PID.tmp`` is being written, ``.NAME.PID.new`` a folder with the new NAME inside, ``.NAME.PID.old`` what NAME replaces.
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]+)\.(?P<kind>tmp|new|old)|\.write-test\.(?P<probe>[0-9]+)")


def write_atomically(path: Path, text: str) -> None:
    """To a temporary name first, then moved into place: a reader sees the old file or the new one."""
    with temporary_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A name in the same folder; what is still there after the block goes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(new: Path, place: Path) -> None:
    """``new``, inside a ``.NAME.PID.new`` folder, takes its place; what was there goes only once it has.

    Raises:
        OSError: if it cannot be moved; the old one is back then.
    """
    old = new.parent / f"{place.name}.old"
    if place.exists():
        place.replace(old)
    try:
        new.replace(place)
    except OSError:
        if old.exists():
            old.replace(place)
        raise


def clear_leftovers(folder: Path) -> None:
    """Takes away what killed processes were writing in ``folder``; what they had moved aside and not replaced comes back."""
    for path in sorted(folder.iterdir()):
        found = _LEFT.fullmatch(path.name)
        if found is None or _is_alive(int(found["pid"] or found["probe"])):
            continue
        if found["kind"] == "old":
            _put_back(path, folder / found["name"])
        elif found["kind"] == "new":
            _put_back(path / f"{found['name']}.old", folder / found["name"])
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _put_back(old: Path, place: Path) -> None:
    if old.exists() and not place.exists():
        old.replace(place)


def _is_alive(pid: int) -> bool:
    """Whether another process of this machine has the number; our own was somebody else's before."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
