"""Files that are never seen half-written, and what a killed process left of those it was writing.

The one place that decides how a file comes to its name: under a name with our mark beside it, as readable as any new file of the user's,
then moved; and what is said where that cannot be done.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapruner.errors import AdaPrunerError, ConfigurationError
from adapruner.files.digests import write_sums

#: ``.tmp`` is being written, ``.new`` a folder with the new NAME and what it replaces (``NAME.old``) inside. Nobody else names files so.
_LEFT = re.compile(r"\.adapruner-(?P<pid>[0-9]+)-(?P<name>.+)\.(?P<kind>tmp|new|old)")
#: How the libraries that write tensors say that a write failed, who raise errors of their own.
_FULL = re.compile(r"SafetensorError: |RuntimeError: .*(inline_container|PytorchStreamWriter|failed writing|iostream error)", re.DOTALL)
GOES_ON = "the same command goes on where it stopped"


def marked(path: Path, kind: str) -> Path:
    """The name beside ``path`` under which this process makes what will be there; ``kind`` is ``tmp`` or ``new``."""
    return path.with_name(f".adapruner-{os.getpid()}-{path.name}.{kind}")


def write_atomically(path: Path, text: str) -> None:
    """To a temporary name first, then moved into place: a reader sees the old file or the new one.

    Raises:
        ConfigurationError: as :func:`replacing`.
    """
    content = text.encode()
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path, size: int = 0, *, argument: str = "folder", remedy: str = f"make room, {GOES_ON}") -> Iterator[Path]:
    """A name in the same folder to write to; after the block its file is at ``path``, of a new file's mode. A block that fails leaves none.

    Args:
        path: of the file.
        size: bytes that will be written, where that is known: a disk without that room is refused before anything is written.
        argument, remedy: of the message.

    Raises:
        ConfigurationError: if there is no room, no right to write, no folder any more, or another folder in the file's place.
    """
    temporary = marked(path, "tmp")
    try:
        if path.is_dir():
            raise ConfigurationError(f"{argument}: expected a file at {path}, got a folder; move it away")
        with writing(path, size, argument=argument, remedy=remedy):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            mode = os.fstat(descriptor).st_mode & 0o777  # 0o666 without what the user's umask takes away
            os.close(descriptor)
            yield temporary
            temporary.chmod(mode)  # safetensors writes for the owner alone
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, size: int = 0, *, argument: str = "folder", remedy: str = f"make room, {GOES_ON}") -> Iterator[None]:
    """Whatever stops the block from writing at ``path`` becomes one line, as :func:`replacing` says it."""
    if size:
        check_room(path, size, argument=argument, remedy=remedy)
    try:
        yield
    except Exception as error:
        if isinstance(error, AdaPrunerError) or not (isinstance(error, OSError) or _FULL.search(f"{type(error).__name__}: {error}")):
            raise
        raise _cannot_write(path, error, argument, remedy) from error


def check_room(path: Path, size: int, *, argument: str = "folder", remedy: str = f"make room, {GOES_ON}") -> None:
    """Refuses a disk that has not the room for what is to be written at ``path``.

    Args:
        size: in bytes.

    Raises:
        ConfigurationError: with what is needed and what is there.
    """
    free = _free(path)
    if free is not None and free < size:
        raise ConfigurationError(f"{argument}: expected {_mib(size)} of room for {path}, got {_mib(free)}; {remedy}")


def _cannot_write(path: Path, error: Exception, argument: str, remedy: str) -> ConfigurationError:
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return ConfigurationError(
            f"{argument}: expected the folder {path.parent} to stay where it was, got none any more; put it back, {GOES_ON}"
        )
    reason, free = getattr(error, "strerror", None) or str(error).strip().split("\n")[0], _free(path)
    full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    room = f" ({_mib(free)} of room)" if full and free is not None else ""
    return ConfigurationError(f"{argument}: expected to write {path}, got {reason}{room}; {remedy}")


def _free(path: Path) -> int | None:
    """Bytes that the file system of a path has for its user; ``None`` where it does not say."""
    try:
        return shutil.disk_usage(next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())).free
    except (OSError, StopIteration):
        return None


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def replace_folder(new: Path, place: Path) -> None:
    """``new``, inside a folder of our mark, takes its place; what was there goes only once it has.

    Its files get the modes of new files, and a ``SHA256SUMS`` that :func:`adapruner.files.digests.check_sums` reads.

    Raises:
        OSError: if it cannot be moved; the old one is back then.
    """
    make_readable(new)
    write_sums(new)
    old = new.parent / f"{place.name}.old"
    if place.exists():
        place.replace(old)
    try:
        new.replace(place)
    except OSError:
        if old.exists():
            old.replace(place)
        raise


def make_readable(folder: Path) -> None:
    """Gives every file inside the mode of a new one, 0o666 without the user's umask: libraries write some for the owner alone."""
    probe = folder / f".adapruner-{os.getpid()}-mode.tmp"
    probe.mkdir(exist_ok=True)
    mode = probe.stat().st_mode & 0o666
    probe.rmdir()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Takes away what killed processes were writing in ``folder``; what they had moved aside and not replaced comes back.

    Args:
        name: of one file or folder; ``None``: of all.
    """
    for path in sorted(folder.glob(".adapruner-*")):
        found = _LEFT.fullmatch(path.name)
        if found is None or name not in (None, found["name"]) or _is_alive(int(found["pid"])):
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
    if old.exists() and not os.path.lexists(place):
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
