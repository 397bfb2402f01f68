from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from adapruner.data.documents import Document
from adapruner.data.draw_windows import WindowDrawer
from adapruner.data.instructions import render
from adapruner.data.text_source import TextSource
from adapruner.data.windows import IGNORED, TextWindows, joined_windows, pad_instructions, sample_windows
from adapruner.errors import ConfigurationError, DataError

BOS, EOS, PAD = 0, 1, 2


def words(start: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def documents(lengths: list[int], source: str = "s") -> list[Document]:
    """Documents of so many words; every word is different, so that a token tells its document."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [Document(source, str(i), words(start, n)) for i, (start, n) in enumerate(zip(starts, lengths, strict=True))]


def test_joined_windows_equal_a_hand_loop(tokenizer: Any) -> None:
    texts = [*documents([5, 0, 9, 1, 30, 0, 0, 7])]
    joined = ""
    for i, document in enumerate(texts):
        joined += ("" if i == 0 else "\n\n") + document.text
    stream = tokenizer(joined)["input_ids"]
    expected = []
    for start in range(0, len(stream), 8):
        if start + 8 <= len(stream):
            expected.append(stream[start : start + 8])
    windows = joined_windows(texts, tokenizer, 8)
    assert windows.input_ids.tolist() == expected
    assert len(stream) % 8 != 0
    assert torch.equal(windows.labels, windows.input_ids)
    assert windows.attention_mask.all()
    assert int((windows.input_ids == BOS).sum()) == 1
    assert windows.documents == {d.hash for d in texts if d.text}
    assert joined_windows(texts, tokenizer, 8, limit=2).input_ids.tolist() == expected[:2]


def test_joined_windows_refuses_too_little_text(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="expected at least one window of 64 tokens, got 6 tokens"):
        joined_windows(documents([5]), tokenizer, 64)


def slow_windows(texts: list[Document], tokenizer: Any, seq_len: int) -> list[tuple[list[int], int]]:
    """Every run of ``seq_len`` tokens of the packed stream, with its start."""
    stream: list[int] = []
    for document in texts:
        if document.text.strip():
            stream += tokenizer(document.text)["input_ids"] + [EOS]
    return [(stream[i : i + seq_len], i) for i in range(len(stream) - seq_len + 1)]


@pytest.mark.parametrize("seed", range(5))
def test_sampled_windows_are_disjoint_pieces_of_the_packed_stream(tokenizer: Any, seed: int) -> None:
    texts = documents([5, 40, 0, 3, 2, 61, 17])
    pieces = slow_windows(texts, tokenizer, 16)
    windows = sample_windows(texts, tokenizer, 16, None, seed)
    starts = [next(start for piece, start in pieces if piece == row) for row in windows.input_ids.tolist()]
    stream_length = len(pieces) + 15
    assert len(windows) == stream_length // 16
    assert sorted(starts) == [min(starts) + 16 * i for i in range(len(starts))]
    assert min(starts) <= stream_length % 16


def test_windows_name_every_document_they_hold(tokenizer: Any) -> None:
    texts = documents([5, 40, 3, 2, 61, 17])
    owner = {token: d.hash for d in texts for token in tokenizer(d.text)["input_ids"] if token != BOS}
    windows = sample_windows(texts, tokenizer, 8, None, 0)
    for row, hashes in zip(windows.input_ids.tolist(), windows.document_hashes, strict=True):
        held = {owner[token] for token in row if token not in (BOS, EOS)}
        # a window may begin with another document's end-of-text or end with another's begin-of-text
        assert held <= set(hashes.split())
        assert len(hashes.split()) <= len(held) + (row[0] == EOS) + (row[-1] == BOS)


def test_no_window_crosses_sources(tokenizer: Any) -> None:
    a, b = [d.text for d in documents([50, 33])], [words(1000 + 70 * i, 70) for i in range(2)]
    windows = WindowDrawer(tokenizer, 3).each("calibration", [TextSource("a", texts=a), TextSource("b", texts=b)], 8, None)
    assert windows.source_names == ["a", "b"]
    for row, source in zip(windows.input_ids.tolist(), windows.source_index.tolist(), strict=True):
        assert all((token >= 1005) == (source == 1) for token in row if token > PAD)
    assert set(windows.source_index.tolist()) == {0, 1}


def test_the_seed_decides_the_draw(tokenizer: Any) -> None:
    texts = documents([100] * 8)
    first, same, other = (sample_windows(texts, tokenizer, 16, 10, seed) for seed in (4, 4, 5))
    assert len(first) == 10
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != other.fingerprint
    assert len({tuple(row) for row in first.input_ids.tolist()}) == 10


def test_too_few_windows_are_counted(tokenizer: Any) -> None:
    texts = documents([30, 30])
    with pytest.raises(DataError, match="expected 9 windows of 16 tokens, got 4; give more text"):
        sample_windows(texts, tokenizer, 16, 9, 0)
    assert len(sample_windows(texts, tokenizer, 16, 9, 0, at_least=4)) == 4
    with pytest.raises(DataError, match="expected at least 1 windows of 256 tokens, got 0"):
        sample_windows(texts, tokenizer, 256, 9, 0, at_least=1)
    with pytest.raises(DataError, match="expected 1 windows of 16 tokens, got 0"):
        sample_windows([], tokenizer, 16, 1, 0)


def test_pool_stops_reading(tokenizer: Any) -> None:
    read = []

    def endless() -> Iterator[Document]:
        while True:
            read.append(len(read))
            yield Document("s", "x", words(30 * len(read) % 1900, 30))

    windows = sample_windows(endless(), tokenizer, 16, 4, 0, pool=4)
    assert len(windows) == 4
    assert len(read) == 2


def example(instruction: str, response: str, source: str = "i") -> Document:
    prompt, text = render({"instruction": instruction, "input": "", "output": response})
    return Document(source, "", text, prompt)


def test_prompt_and_padding_are_not_counted(tokenizer: Any) -> None:
    plain = Document("i", "0", "w1 w2 w3 w4 w5", prompt="w1 w2 ")
    windows = pad_instructions([plain], tokenizer, 10, None, 0)
    first = tokenizer("w1 w2 w3 w4 w5")["input_ids"]
    assert windows.input_ids.tolist() == [[*first, EOS, PAD, PAD, PAD]]
    assert windows.attention_mask.tolist() == [[1] * 7 + [0] * 3]
    assert windows.labels.tolist() == [[IGNORED] * 3 + first[3:] + [EOS] + [IGNORED] * 3]


def test_a_token_across_the_prompts_end_is_counted() -> None:
    class Pairs:
        """Two characters a token: the prompt's last token changes when text follows."""

        eos_token_id, pad_token_id, bos_token_id = 1, None, None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1000 + hash_pair(text[i : i + 2]) for i in range(0, len(text), 2)]}

    def hash_pair(pair: str) -> int:
        return sum(ord(c) * 256**i for i, c in enumerate(pair))

    windows = pad_instructions([Document("i", "0", "abcdefg", prompt="abc")], Pairs(), 8, None, 0)
    assert (windows.labels[0] == IGNORED).tolist() == [True, False, False, False, False, True, True, True]
    assert windows.input_ids[0, 5:].tolist() == [1, 1, 1]  # no padding token: end-of-text pads
    assert windows.attention_mask[0].tolist() == [1] * 5 + [0] * 3


def test_examples_are_truncated_and_those_with_nothing_to_count_left_out(tokenizer: Any) -> None:
    short, long = Document("i", "", words(0, 4), words(0, 2)), Document("i", "", words(100, 50), words(100, 3))
    lost = Document("i", "", words(200, 40), words(200, 30))
    windows = pad_instructions([short, lost, long], tokenizer, 12, None, 0)
    assert windows.documents == {short.hash, long.hash}
    assert windows.input_ids[1].tolist() == tokenizer(long.text)["input_ids"][:12]
    assert (windows.labels != IGNORED).sum(1).tolist() == [3, 8]
    with pytest.raises(DataError, match="expected at least 1 examples, got 0 whose response begins within 12 tokens"):
        pad_instructions([lost], tokenizer, 12, None, 0)


def test_drawing_examples(tokenizer: Any) -> None:
    rows = [Document("i", "", words(10 * i, 6), words(10 * i, 2)) for i in range(30)]
    first, same, other = (pad_instructions(rows, tokenizer, 12, 8, seed) for seed in (1, 1, 2))
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert len(set(first.document_hashes)) == 8
    assert pad_instructions(rows, tokenizer, 12, 4, 0, pool=4).documents == {d.hash for d in rows[:4]}
    with pytest.raises(DataError, match="expected 31 examples, got 30"):
        pad_instructions(rows, tokenizer, 12, 31, 0)
    assert len(pad_instructions(rows, tokenizer, 12, 31, 0, at_least=30)) == 30


def test_select_and_concatenate_keep_rows_with_their_origin(tokenizer: Any) -> None:
    a, b = sample_windows(documents([60], "a"), tokenizer, 8, 5, 0), sample_windows(documents([90], "b"), tokenizer, 8, 5, 0)
    both = TextWindows.concatenate([a, b, a])
    assert both.source_names == ["a", "b"]
    assert both.source_index.tolist() == [0] * 5 + [1] * 5 + [0] * 5
    assert both.select(range(5, 10)).input_ids.tolist() == b.input_ids.tolist()
    swapped = both.select(torch.tensor([7, 2]))
    assert swapped.input_ids.tolist() == [b.input_ids[2].tolist(), a.input_ids[2].tolist()]
    assert swapped.document_hashes == [b.document_hashes[2], a.document_hashes[2]]
    assert swapped[0]["labels"].tolist() == b.labels[2].tolist()


@pytest.mark.parametrize("change", ["input_ids", "labels", "source_index", "source_names"])
def test_the_fingerprint_sees_every_change(tokenizer: Any, change: str) -> None:
    windows, changed = (sample_windows(documents([90]), tokenizer, 8, 5, 0) for _ in range(2))
    assert windows.fingerprint == changed.fingerprint
    if change == "source_names":
        changed.source_names = ["other"]
    else:
        getattr(changed, change)[0] += 1
    assert windows.fingerprint != changed.fingerprint


def test_shapes_that_disagree_are_refused(tokenizer: Any) -> None:
    w = sample_windows(documents([90]), tokenizer, 8, 5, 0)
    with pytest.raises(DataError, match=r"got \(5, 8\), \(5, 7\)"):
        TextWindows(w.input_ids, w.labels[:, 1:], w.attention_mask, ["s"], w.source_index, w.document_hashes)
    with pytest.raises(DataError, match=r"expected parts of one seq_len, got \[8, 9\]"):
        TextWindows.concatenate([w, sample_windows(documents([90]), tokenizer, 9, 5, 0)])


def test_sizes_out_of_range(tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match="seq_len: expected a whole number >= 2, got 1"):
        sample_windows(documents([9]), tokenizer, 1, 1, 0)
    with pytest.raises(ConfigurationError, match="count: expected a whole number >= 1, got 0"):
        pad_instructions(documents([9]), tokenizer, 8, 0, 0)
    with pytest.raises(ConfigurationError, match="window: expected a whole number >= 2, got 0"):
        joined_windows(documents([9]), tokenizer, 0)
