"""Which windows of the search split the trials see, and which decide between the best few of them.

The best of many trials is partly the luckiest on the windows that judged it. Windows that no trial has seen tell luck from merit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adapruner.errors import DataError
from adapruner.evaluation.perplexity import Windows
from adapruner.search.config import SearchConfig


@dataclass(frozen=True)
class PartOfSplit:
    """Some rows of a split; three int64 tensors ``[n, seq_len]``."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)


def split_windows(windows: Windows, config: SearchConfig) -> tuple[Windows, Windows]:
    """(what trials are judged on, what the second look is judged on): both the whole split where nothing is held out.

    The first rows go to the trials, the last ``search.rerank.held_out`` to the second look. A data module shuffles the split.

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
    return _rows(windows, slice(0, count - held_out)), _rows(windows, slice(count - held_out, count))


def _rows(windows: Windows, rows: slice) -> PartOfSplit:
    return PartOfSplit(windows.input_ids[rows], windows.labels[rows], windows.attention_mask[rows])
