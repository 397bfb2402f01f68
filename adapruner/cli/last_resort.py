"""What is said when a command ends by something that nobody foresaw: one line, and where the traceback was written."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

GOES_ON = "the same command goes on where it stopped"
#: What the operating system says where a file cannot be written.
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|failed to map segment", re.IGNORECASE)
_PEER_ENDED = re.compile(r"gloo|nccl|connection (closed|reset)|TCPStore|broken pipe|socket", re.IGNORECASE)


def describe(error: BaseException) -> str:
    """The line; the traceback of what is our fault is written into a file of the temporary folder, which it names."""
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, OSError):
        line = _of_the_system(error)
        if line:
            return line
    if isinstance(error, MemoryError) or _NO_MEMORY.search(f"{type(error).__name__} {reason}"):
        got = f"none left ({reason or 'MemoryError'})"
        return f"memory: expected enough for this model and these batches, got {got}; lower the batch sizes or free some, {GOES_ON}"
    if _has_peers() and isinstance(error, RuntimeError | OSError) and _PEER_ENDED.search(f"{type(error).__name__} {reason}"):
        return f"processes: expected all of them to go on, got one that ended ({reason:.100}); see what it said, {GOES_ON}"
    what, where = f"{type(error).__name__}: {reason}", _write(error)
    return f"adapruner: expected to go on, got {what}; this is a fault of adapruner's, not yours: please report it with {where}"


def _of_the_system(error: OSError) -> str:
    what = f"{error.strerror}{f' at {error.filename}' if error.filename else ''}"
    if error.errno in _NOT_WRITABLE:
        return f"folder: expected room and the right to write, got {what}; make room, {GOES_ON}"
    if error.errno in _NO_NAME:
        return f"arguments: expected paths that a file system takes, got {what:.200}; correct them"
    if error.errno == errno.ENOENT and error.filename and not Path(os.fsdecode(error.filename)).parent.is_dir():
        folder = Path(os.fsdecode(error.filename)).parent
        return f"folder: expected {folder} to stay where it was, got none any more; put it back, {GOES_ON}"
    return ""


def _has_peers() -> bool:
    """Whether this process is one of several."""
    distributed = sys.modules.get("torch.distributed")
    group = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return group or os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def _write(error: BaseException) -> str:
    """Where the traceback is; in words, where it could not be written."""
    try:
        text = "".join(traceback.format_exception(error))
        descriptor, name = tempfile.mkstemp(prefix="adapruner-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"adapruner {' '.join(sys.argv[1:])}\nPython {sys.version}\n\n{text}")
    except Exception:  # no room there either, or no memory
        frame = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
        place = f" in {frame[0].filename}, line {frame[0].lineno}" if frame else ""
        return f"this line: the traceback{place} could not be written"
    return f"{name}, where the traceback is"
