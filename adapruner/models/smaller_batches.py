"""Work in batches that goes on with smaller ones where the device's memory does not hold a whole one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from adapruner.progress import announce

Found = TypeVar("Found")


def within_memory(measure: Callable[[], Any]) -> Any:
    """What ``measure`` finds; ``None`` where the device's memory does not suffice."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # after the error is gone, and with it the tensors that its traceback held
    return None


def with_smaller_batches(work: Callable[[int], Found], batch_size: int, what: str) -> Found:
    """The whole work again with half the batch as long as memory runs out, which it does in the first batch or never.

    Args:
        work: batch size -> its result, never ``None``.
        what: it is, for the line that says so.

    Raises:
        torch.OutOfMemoryError: if one sample is too many.

    >>> def count(batch_size):
    ...     if batch_size > 2:
    ...         raise torch.OutOfMemoryError
    ...     return batch_size
    >>> with_smaller_batches(count, 8, "statistics")
    adapruner: statistics: the device's memory does not hold batches of 8; goes on with 4
    adapruner: statistics: the device's memory does not hold batches of 4; goes on with 2
    2
    """
    while batch_size > 1:
        found: Found | None = within_memory(lambda size=batch_size: work(size))  # type: ignore[misc]
        if found is not None:
            return found
        announce(f"{what}: the device's memory does not hold batches of {batch_size}; goes on with {batch_size // 2}")
        batch_size //= 2
    return work(batch_size)


def in_parts(measure: Callable[[slice], Any], rows: slice) -> Any:
    """What ``measure`` finds of the rows, added up over halves of them where memory does not hold all at once.

    Raises:
        torch.OutOfMemoryError: if one row is too many.
    """
    if rows.stop - rows.start < 2:
        return measure(rows)
    found = within_memory(lambda: measure(rows))
    if found is not None:
        return found
    middle = (rows.start + rows.stop) // 2
    return in_parts(measure, slice(rows.start, middle)) + in_parts(measure, slice(middle, rows.stop))
