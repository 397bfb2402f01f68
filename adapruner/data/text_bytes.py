"""How many UTF-8 bytes of text the predicted tokens of a window stand for, so that models with other tokenizers can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tokenise_with_ends(text: str, tokenizer: Any) -> tuple[list[int], Tensor | None]:
    """Token ids, and for each the UTF-8 byte ``[n]`` int64 of the text where it ends.

    The ends come from the tokenizer's own offsets, not from decoding, which may add or drop spaces. They never go back: a
    special token, which stands for no text, ends where the token before it did. ``None`` where a tokenizer has no offsets
    (those written in Python).

    Args:
        text: one text.
        tokenizer: ``tokenizer(text)["input_ids"]``; with ``is_fast``, also ``offset_mapping`` in characters.
    """
    if not getattr(tokenizer, "is_fast", False):
        return list(tokenizer(text)["input_ids"]), None
    encoded = tokenizer(text, return_offsets_mapping=True)
    ends = np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64)
    return list(encoded["input_ids"]), torch.from_numpy(_bytes_before(text)[np.maximum.accumulate(ends)])


def predicted_bytes(ends: Tensor, window: int, whole: bool = False) -> Tensor:
    """Bytes ``[n]`` that tokens 2 to ``window`` of each window stand for: the first token of a window is not predicted.

    A character that two windows share counts for the one that begins it.

    Args:
        ends: ``[n * window]``, as :func:`tokenise_with_ends` gives them.
        window: tokens in a window.
        whole: the first is predicted too, because a BOS stands before it.

    >>> predicted_bytes(torch.tensor([1, 3, 6, 10, 15, 21]), 3).tolist()
    [5, 11]
    """
    rows = ends.view(-1, window)
    starts = torch.cat([rows.new_zeros(1), rows[:-1, -1]]) if whole else rows[:, 0]
    return rows[:, -1] - starts


def _bytes_before(text: str) -> np.ndarray:
    """``[len(text) + 1]``: UTF-8 bytes of the first so many characters."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
