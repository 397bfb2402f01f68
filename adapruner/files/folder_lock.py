"""One run at a time in a run folder: two would write into one study, and each take the other's trials for a killed run's."""

from __future__ import annotations

import json
import os
from pathlib import Path

from adapruner.errors import ConfigurationError

FILE = ".lock"


class FolderLock:
    """Held by the process from :meth:`take` to :meth:`release`, or to its end, whatever ends it."""

    def __init__(self) -> None:
        self._lock: object = None

    def take(self, folder: Path) -> None:
        """Takes the folder; once is enough. Where the file system knows no locks, the user has to take care.

        Raises:
            ConfigurationError: if another run holds it.
        """
        if self._lock is not None:
            return
        from filelock import FileLock, Timeout

        lock = FileLock(folder / FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigurationError(
                f"folder: expected no other run at work in {folder}, got one; wait for it, end it, or choose another folder"
            ) from None
        except (OSError, NotImplementedError):
            return
        self._lock = lock

    def release(self) -> None:
        """Gives the folder back, for the next run in this process."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            Path(lock.lock_file).unlink(missing_ok=True)  # type: ignore[attr-defined]  # still held: whoever waits notices
            lock.release()  # type: ignore[attr-defined]


def check_folder(folder: Path) -> None:
    """Makes the folder and writes a probe into it.

    Raises:
        ConfigurationError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}"
        probe.write_text(json.dumps({}))
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"folder: expected a folder that can be written, got {folder} ({error.strerror}); choose another"
        ) from error
