"""One run at a time in a run folder: two would write into one journal, and each take the other's trials for a killed run's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from adapruner.errors import ConfigurationError


class FolderLock:
    """Held by the process from :meth:`take` to :meth:`release`, or to its end, whatever ends it. It leaves no file behind."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self, folder: Path) -> None:
        """Once is enough; where the system or its file system knows no such locks, the user has to take care.

        Raises:
            ConfigurationError: if another run holds it.
        """
        if self._descriptor is not None:
            return
        try:
            import fcntl
        except ImportError:
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
                raise ConfigurationError(
                    f"folder: expected no other run at work in {folder}, got one; wait for it, end it, or choose another folder"
                ) from None
            return
        self._descriptor = descriptor

    def release(self) -> None:
        """For the next run in this process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
