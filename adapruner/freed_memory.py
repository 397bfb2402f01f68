"""What a stage has freed goes back to the system before the next one begins.

glibc takes tensors of up to some MiB from a heap of its own and keeps that when they are freed, for tensors that fit into the holes. Those
of the next stage are of other sizes: loading, scoring and every trial left hundreds of MiB behind that were never used again.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back_freed_memory() -> None:
    """Tells glibc to; takes milliseconds. Nothing where the C library is another, nor on a GPU, whose allocator is PyTorch's."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl or macOS; Windows
        return None
