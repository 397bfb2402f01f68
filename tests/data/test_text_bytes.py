"""Bytes of predicted text against slices of the text itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.data.documents import Document
from adapruner.data.text_bytes import predicted_bytes, tokenise_with_ends
from adapruner.data.windows import joined_windows
from adapruner.demo import MODEL_FOLDER

ASCII = "The with statement runs a block, and closes what it opened; whatever happens in between. " * 9
MIXED = "Größe und Maß: 3 € für 1 µm, naïve café, 日本語の文章, Ελληνικά, \N{GRINNING FACE}\N{THUMBS UP SIGN}. " * 9


@pytest.fixture(scope="module")
def demo_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.mark.parametrize("text", [ASCII, MIXED], ids=["ascii", "mixed"])
@pytest.mark.parametrize("window", [2, 7, 32])
def test_bytes_of_a_window_are_those_of_its_slice_of_the_text(demo_tokenizer: Any, text: str, window: int) -> None:
    windows = joined_windows([Document("s", "0", text)], demo_tokenizer, window)
    encoded = demo_tokenizer(text, return_offsets_mapping=True)
    expected = []
    for start in range(0, len(encoded["input_ids"]) // window * window, window):
        spans = encoded["offset_mapping"][start : start + window]
        expected.append(len(text[spans[0][1] : spans[-1][1]].encode()))
    assert windows.text_bytes is not None
    assert windows.text_bytes.tolist() == expected
    assert sum(expected) <= len(text.encode())


def test_bytes_of_ascii_are_those_of_the_decoded_tokens(demo_tokenizer: Any) -> None:
    windows = joined_windows([Document("s", "0", ASCII)], demo_tokenizer, 16, limit=3)
    assert windows.text_bytes is not None
    assert windows.text_bytes.tolist() == [len(demo_tokenizer.decode(row[1:].tolist())) for row in windows.input_ids]
    assert windows.select([2, 0]).text_bytes.tolist() == [windows.text_bytes[2], windows.text_bytes[0]]  # type: ignore[union-attr]


def test_special_tokens_stand_for_no_text() -> None:
    class Fast:
        is_fast = True

        def __call__(self, text: str, return_offsets_mapping: bool) -> Any:
            return {"input_ids": [0, 5, 6, 1], "offset_mapping": [(0, 0), (0, 2), (2, 4), (0, 0)]}

    ids, ends = tokenise_with_ends("äb€d", Fast())
    assert ids == [0, 5, 6, 1]
    assert ends is not None
    assert ends.tolist() == [0, 3, 7, 7]
    assert predicted_bytes(ends, 4).tolist() == [7]


def test_a_tokenizer_without_offsets_leaves_bytes_unknown() -> None:
    class Slow:
        eos_token_id = None

        def __call__(self, text: str) -> Any:
            return {"input_ids": [ord(c) for c in text]}

    windows = joined_windows([Document("s", "0", "abcdefgh")], Slow(), 4)
    assert windows.text_bytes is None
    assert windows.select([1]).text_bytes is None


def test_half_characters_at_the_border_count_once() -> None:
    """A character of which one window has the first token and the next the second."""
    ends = torch.tensor([1, 5, 5, 6])
    assert predicted_bytes(ends, 2).tolist() == [4, 1]
