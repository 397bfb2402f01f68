"""One run at a time in a run folder: two would write into one study, and each take the other's trials for a killed run's."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapruner.errors import AdaPrunerError, ConfigurationError
from adapruner.files.atomic import GOES_ON, clear_leftovers

FILE = ".lock"
#: What a file system says that does not let us write; another error is of one that knows no locks.
_REFUSING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ELOOP)
#: Every file that a run may leave in its folder.
RUN_FILES = re.compile(
    r"\.lock|config\.yaml|plan(-\d+)?\.json|trials\.csv|study\.journal|statistics(-\d+)?\.safetensors|grams\.safetensors|latency\.json"
    r"|reranking\.json|calibration_spread\.json|calibration_set\.json|pareto\.json|report\.json|report\.html|report_measurements\.json"
    r"|stages\.json|finished\.json|predictions\.jsonl|recovery\.pt|metrics(-\d+)?\.csv|hparams\.yaml|trial-\d+\.json"
)
#: Every folder of it, and what may be a file or a folder.
RUN_FOLDERS, EITHER = ("checkpoints", "plans", "model", "refit"), ("last.ckpt",)
SHARDED = "meta.pt"  # in a folder that is a checkpoint


class FolderLock:
    """Held by the process from :meth:`take` to :meth:`release`, or to its end, whatever ends it.

    Args:
        file: name of the lock in the folder; another than a run's where only one file of it is to be held.
    """

    def __init__(self, file: str = FILE) -> None:
        self._lock: object = None
        self.file = file
        self.folder: Path | None = None

    def take(self, folder: Path) -> None:
        """Takes the folder; once is enough. Where the file system knows no locks, the user has to take care.

        Raises:
            ConfigurationError: if another run holds it.
        """
        if self._lock is not None:
            return
        from filelock import FileLock, Timeout

        lock = FileLock(folder / self.file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigurationError(
                f"folder: expected no other run at work in {folder}, got one; wait for it, end it, or choose another folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in _REFUSING:
                raise _not_writable(folder, error) from error
            return
        self._lock, self.folder = lock, folder

    def check(self) -> None:
        """Whether the folder that was taken is still where it was.

        Raises:
            ConfigurationError: if it was renamed or removed, before anything is written into a new one of its name.
        """
        if self.folder is not None:
            check_there(self.folder / self.file)

    def release(self) -> None:
        """Gives the folder back, for the next run in this process."""
        if self._lock is not None:
            lock, self._lock, self.folder = self._lock, None, None
            Path(lock.lock_file).unlink(missing_ok=True)  # type: ignore[attr-defined]  # still held: whoever waits notices
            lock.release()  # type: ignore[attr-defined]


def check_there(file: Path) -> None:
    """Whether a file of a run, or its folder, is where it was.

    Raises:
        ConfigurationError: if it is not.
    """
    if not os.path.lexists(file):
        raise ConfigurationError(f"folder: expected {file} to stay where it was during the run, got none any more; put it back, {GOES_ON}")


@contextmanager
def held(folder: Path) -> Iterator[FolderLock]:
    """The folder, made if it is not there, for this process alone inside the block, and cleared of what killed ones were writing.

    Raises:
        ConfigurationError: if another run holds it, it cannot be written, or something else is in the place of a run's file.
    """
    lock = FolderLock()
    with no_empty_folders(folder):
        check_folder(folder)
        lock.take(folder)
        try:
            for leftovers in (folder, folder / "checkpoints", folder / "refit"):
                if leftovers.is_dir():
                    clear_leftovers(leftovers)
            yield lock
        finally:
            lock.release()


def check_folder(folder: Path) -> None:
    """Makes the folder, and looks whether it can be written and what is there; nothing in it is opened for writing.

    Raises:
        ConfigurationError: if it cannot be written, or a folder or a link that leads nowhere is in the place of a run's file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _not_writable(folder, error) from error
    check_files(folder)


def _not_writable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"folder: expected a folder that can be written, got {folder} ({error.strerror}); choose another")


def check_files(folder: Path) -> None:
    """Whether what has the names of a run's files are files, and of its folders are folders.

    Raises:
        ConfigurationError: naming the first that is none.
    """
    for place in (folder, *(folder / name for name in RUN_FOLDERS[:2])):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if RUN_FILES.fullmatch(path.name):
                wanted, sound = "a file", path.is_file()
            elif path.name in RUN_FOLDERS and place is folder:
                wanted, sound = "a folder", path.is_dir()
            else:
                wanted, sound = "a checkpoint", path.name not in EITHER or path.is_file() or (path / SHARDED).is_file()
            if not sound:
                got = "a folder" if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "something else"
                raise ConfigurationError(f"folder: expected {wanted} at {path}, got {got}; move it away")


@contextmanager
def no_empty_folders(*folders: Path) -> Iterator[None]:
    """What is refused leaves no empty folder behind: some must be made before the last thing is checked."""
    every = {path for folder in folders for path in (folder.absolute(), *folder.absolute().parents)}
    made = [path for path in sorted(every, reverse=True) if not path.exists()]  # the inner ones first
    try:
        yield
    except AdaPrunerError:
        for path in made:
            with suppress(OSError):  # not empty, or never made
                path.rmdir()
        raise
