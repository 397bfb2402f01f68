"""Which windows of the search split the trials are measured on, and which decide between the best few of them.

The best of many trials is partly the luckiest on its windows; windows that no trial was measured on do not share that bias.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from adapruner.errors import DataError
from adapruner.evaluation.perplexity import Windows
from adapruner.search.config import SearchConfig


def split_windows(windows: Windows, config: SearchConfig) -> tuple[Windows, Windows]:
    """(what trials are measured on, what the re-ranking is measured on): both the whole split where nothing is held out.

    The first rows go to the trials, the last ``search.rerank.held_out`` to the re-ranking. A data module shuffles the split.

    Raises:
        DataError: if nothing would be left for the trials.
    """
    held_out = config.held_out
    if not held_out:
        return windows, windows
    count = len(windows.input_ids)
    if held_out >= count:
        raise DataError(
            f"search.rerank.held_out: expected fewer than the {count} windows of the search split, got {held_out}; "
            "give fewer, or raise data.search.samples"
        )
    return select_rows(windows, slice(count - held_out)), select_rows(windows, slice(count - held_out, count))


def select_rows(windows: Any, rows: slice | Tensor) -> Any:
    """Some rows of windows that may be no more than three tensors ``[n, seq_len]``: ``input_ids``, ``labels``, ``attention_mask``."""
    return SimpleNamespace(**{name: getattr(windows, name)[rows] for name in ("input_ids", "labels", "attention_mask")})
