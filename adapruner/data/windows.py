"""From documents to token windows of one length.

Three ways in: :func:`sample_windows` for calibration, search and plain-text recovery, :func:`pad_instructions` for
instruction rows, :func:`joined_windows` for perplexity as LLM-Pruner (arXiv 2305.11627) measures it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adapruner.data.bos import BosRule
from adapruner.data.conversations import common_prefix, encode_conversation, render_conversation
from adapruner.data.documents import Document
from adapruner.data.text_bytes import predicted_bytes, tokenise_with_ends
from adapruner.data.too_little_text import TooLittleTextError
from adapruner.errors import ConfigurationError, DataError

#: The label of a token that no loss counts (PyTorch's ``ignore_index``).
IGNORED = -100
_AS_TOKENISED = BosRule()


@dataclass(eq=False)
class TextWindows:
    """``n`` rows of ``seq_len`` tokens and where each came from.

    Raises:
        DataError: if the shapes do not agree.
    """

    input_ids: Tensor
    """``[n, seq_len]`` int64."""
    labels: Tensor
    """``[n, seq_len]`` int64: the ids again, -100 where not counted (padding, prompt). Not shifted."""
    attention_mask: Tensor
    """``[n, seq_len]`` int64: 0 on padding, else 1."""
    source_names: list[str]
    """The sources, in the order that ``source_index`` counts."""
    source_index: Tensor
    """``[n]`` int64: each window's source."""
    document_hashes: list[str]
    """Per window, the hashes of the documents that contribute to it, separated by spaces."""
    text_bytes: Tensor | None = None
    """``[n]`` int64: UTF-8 bytes of each window's predicted text, where known: for bits per byte."""
    begins_with: str | None = None
    """The token that every window begins with (``<bos>``), where there is one."""
    left_out: int = 0
    """Further windows that the text has and a limit left out."""

    def __post_init__(self) -> None:
        shape, rows = tuple(self.input_ids.shape), len(self.input_ids)
        same = shape == tuple(self.labels.shape) == tuple(self.attention_mask.shape)
        if not same or len(shape) != 2 or len(self.source_index) != rows or len(self.document_hashes) != rows:
            got = f"{shape}, {tuple(self.labels.shape)}, {tuple(self.attention_mask.shape)}, "
            got += f"{tuple(self.source_index.shape)}, {len(self.document_hashes)} hashes"
            raise DataError(f"windows: expected ids, labels and mask [n, seq_len] with n indices and hashes, got {got}; mend the shapes")

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One window as a model's arguments, each ``[seq_len]``."""
        return {"input_ids": self.input_ids[index], "attention_mask": self.attention_mask[index], "labels": self.labels[index]}

    @property
    def seq_len(self) -> int:
        """Tokens in a window."""
        return self.input_ids.shape[1]

    @property
    def documents(self) -> set[str]:
        """The hashes of all documents that contribute to any window."""
        return {h for hashes in set(self.document_hashes) for h in hashes.split()}

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, labels, and each window's source."""
        digest = hashlib.sha256(json.dumps([list(self.input_ids.shape), self.source_names]).encode())
        for tensor in (self.input_ids, self.labels, self.source_index):
            digest.update(tensor.cpu().long().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def select(self, indices: Sequence[int] | Tensor) -> TextWindows:
        """The given windows ``[k]`` in the given order; the list of sources stays whole."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        hashes = [self.document_hashes[i] for i in chosen.tolist()]
        rows = (self.input_ids[chosen], self.labels[chosen], self.attention_mask[chosen])
        text_bytes = None if self.text_bytes is None else self.text_bytes[chosen]
        return TextWindows(*rows, list(self.source_names), self.source_index[chosen], hashes, text_bytes, self.begins_with)

    @staticmethod
    def concatenate(parts: Sequence[TextWindows]) -> TextWindows:
        """All windows of all parts; a source that several parts name is counted once.

        Raises:
            DataError: if there are no parts or their ``seq_len`` differ.
        """
        lengths = {part.seq_len for part in parts}
        if len(lengths) != 1:
            raise DataError(f"windows: expected parts of one seq_len, got {sorted(lengths) or 'no parts'}; cut them alike")
        names = list(dict.fromkeys(name for part in parts for name in part.source_names))
        index = [torch.tensor([names.index(n) for n in p.source_names], dtype=torch.long)[p.source_index] for p in parts]
        return TextWindows(
            torch.cat([p.input_ids for p in parts]),
            torch.cat([p.labels for p in parts]),
            torch.cat([p.attention_mask for p in parts]),
            names,
            torch.cat(index),
            [hashes for p in parts for hashes in p.document_hashes],
            begins_with=parts[0].begins_with,
        )


def sample_windows(
    documents: Iterable[Document],
    tokenizer: Any,
    seq_len: int,
    count: int | None,
    seed: int,
    *,
    at_least: int | None = None,
    pool: int | None = None,
    bos: BosRule = _AS_TOKENISED,
) -> TextWindows:
    """Draws full windows without padding, in the spirit of LLM-Pruner's samples at random offsets.

    The documents are packed in a row with an end-of-text token after each; a random offset is skipped, the rest is cut into
    windows that do not overlap, and ``count`` of them are drawn in random order.

    Args:
        documents: of one source; blank ones are passed over.
        tokenizer: ``tokenizer(text)["input_ids"]`` and ``eos_token_id``.
        seq_len: tokens in a window.
        count: how many windows to draw; ``None`` for all.
        seed: decides offsets and draw.
        at_least: take what there is when that is less than ``count``, down to so many; ``None`` wants ``count`` of them.
        pool: stop reading after enough tokens for so many windows and draw among those; ``None`` reads all.
        bos: what every window begins with.

    Raises:
        ConfigurationError: if ``seq_len``, ``count`` or ``pool`` is out of range.
        TooLittleTextError: if there are no or too few windows.
    """
    _check_sizes(seq_len=seq_len, count=count, pool=pool)
    room = bos.room(seq_len)
    name, tokens, starts, hashes = _pack(documents, tokenizer, None if pool is None else pool * room, bos)
    found, least = len(tokens) // room, at_least or count or 1
    if found < least:
        raise TooLittleTextError(
            f"documents: expected {_wanted(count, at_least)} windows of {seq_len} tokens, got {found}; "
            f"give more text ({least * seq_len:,} tokens or more), fewer samples or a smaller seq_len",
            len(tokens),
        )
    generator = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(len(tokens) % room + 1, (1,), generator=generator))
    ids = bos.windows(tokens[offset : offset + found * room].view(-1, room))
    first = [bisect_right(starts, offset + i * room) - 1 for i in range(found)]
    end = [bisect_right(starts, offset + (i + 1) * room - 1) for i in range(found)]
    contributing = [" ".join(dict.fromkeys(hashes[a:b])) for a, b in zip(first, end, strict=True)]
    return _full_windows(ids, name, contributing, bos).select(torch.randperm(found, generator=generator)[:count])


def pad_instructions(
    documents: Iterable[Document],
    tokenizer: Any,
    seq_len: int,
    count: int | None,
    seed: int,
    *,
    at_least: int | None = None,
    pool: int | None = None,
    bos: BosRule = _AS_TOKENISED,
) -> TextWindows:
    """One row per example: text and end-of-text, truncated to ``seq_len``, padded on the right, prompt not counted.

    Examples whose prompt alone fills the window are left out: they would count nothing. A token that joins the end of
    the prompt with the start of the response counts. Conversations are written by the chat template, which also ends them.

    Args:
        documents: with ``prompt`` where the loss should not count it, or with ``messages``.
        tokenizer: ``tokenizer(text)["input_ids"]``, ``eos_token_id``, ``pad_token_id`` (``None``: end-of-text pads).
        seq_len: tokens in a row.
        count: how many examples to draw; ``None`` for all, in order.
        seed: decides the draw.
        at_least: take what there is when that is less than ``count``, down to so many; ``None`` wants ``count`` of them.
        pool: stop reading after so many usable examples and draw among those; ``None`` reads all.
        bos: what every row begins with.

    Raises:
        ConfigurationError: if ``seq_len``, ``count`` or ``pool`` is out of range.
        TooLittleTextError: if there are no or too few examples.
    """
    _check_sizes(seq_len=seq_len, count=count, pool=pool)
    examples = list(islice(_usable_examples(documents, tokenizer, seq_len, bos), pool))
    if len(examples) < (at_least or count or 1):
        got = f"{len(examples)} whose response begins within {seq_len} tokens"
        wanted = _wanted(count, at_least)
        message = f"documents: expected {wanted} examples, got {got}; give more rows, fewer samples or a larger seq_len"
        raise TooLittleTextError(message, len(examples))
    if count is not None:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:count]
        examples = [examples[i] for i in order.tolist()]
    names = list(dict.fromkeys(d.source for d, _, _ in examples))
    index = torch.tensor([names.index(d.source) for d, _, _ in examples])
    rows = padded_rows([(ids, uncounted) for _, ids, uncounted in examples], tokenizer, seq_len)
    return TextWindows(*rows, names, index, [d.hash for d, _, _ in examples], begins_with=bos.words)


def joined_windows(
    documents: Iterable[Document], tokenizer: Any, window: int, limit: int | None = None, bos: BosRule = _AS_TOKENISED
) -> TextWindows:
    """LLM-Pruner's evaluation windows: texts joined by a blank line, tokenised once, cut without overlap, rest dropped.

    The text is tokenised as one, so without a rule a begin-of-text token stands at most once, at the very start; blank documents
    are joined like any other. Every window is said to come from every document, as a tokenizer does not tell.

    Args:
        documents: in the data set's own order.
        tokenizer: ``tokenizer(text)["input_ids"]``.
        window: tokens in a window.
        limit: keep only the first so many windows.
        bos: what every window begins with; it then counts among the window's tokens.

    Raises:
        ConfigurationError: if ``window`` or ``limit`` is out of range.
        TooLittleTextError: if the text does not fill one window.
    """
    _check_sizes(window=window, limit=limit)
    read = list(documents)
    tokens, ends = tokenise_with_ends(_joined_text(read, tokenizer), tokenizer)
    text, room = bos.of_text(tokens), bos.room(window)
    ends = ends if ends is None else ends[len(tokens) - len(text) :]
    ids = torch.tensor(text, dtype=torch.long)
    if len(ids) < room:
        message = f"documents: expected at least one window of {window} tokens, got {len(ids)} tokens; give more text or a smaller window"
        raise TooLittleTextError(message, len(ids))
    whole = ids[: len(ids) // room * room].view(-1, room)
    pieces = whole[:limit]
    rows = bos.windows(pieces)
    hashes = " ".join(dict.fromkeys(d.hash for d in read if d.text.strip()))
    windows = _full_windows(rows, "+".join(dict.fromkeys(d.source for d in read)), [hashes] * len(rows), bos)
    windows.text_bytes = None if ends is None else predicted_bytes(ends[: pieces.numel()], room, whole=room < window)
    windows.left_out = len(whole) - len(pieces)
    return windows


def padded_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[tuple[int, int]]]], tokenizer: Any, seq_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and mask, each ``[n, seq_len]`` int64: rows padded on the right, some of their tokens not counted.

    Args:
        rows: for each, at most ``seq_len`` tokens, and the spans ``[start, end)`` of them that no loss counts.
        tokenizer: ``pad_token_id`` (``None``: ``eos_token_id`` pads).
        seq_len: tokens in a row of the result.
    """
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    input_ids = torch.full((len(rows), seq_len), pad, dtype=torch.long)
    labels, mask = torch.full_like(input_ids, IGNORED), torch.zeros_like(input_ids)
    for row, (ids, uncounted) in enumerate(rows):
        input_ids[row, : len(ids)] = labels[row, : len(ids)] = torch.tensor(ids)
        for start, end in uncounted:
            labels[row, start:end] = IGNORED
        mask[row, : len(ids)] = 1
    return input_ids, labels, mask


def _full_windows(ids: Tensor, name: str, hashes: list[str], bos: BosRule) -> TextWindows:
    ids, index = ids.clone(), torch.zeros(len(ids), dtype=torch.long)
    return TextWindows(ids, ids.clone(), torch.ones_like(ids), [name], index, hashes, begins_with=bos.words)


def _pack(documents: Iterable[Document], tokenizer: Any, most: int | None, bos: BosRule) -> tuple[str, Tensor, list[int], list[str]]:
    """The source's name, tokens ``[n]`` of its documents, and where each begins, with its hash; stops after ``most`` tokens."""
    name, rows, starts, hashes = "", [torch.zeros(0, dtype=torch.long)], list[int](), list[str]()
    total = 0
    for document in documents:
        if document.text.strip():
            name = document.source
            rows.append(torch.tensor(ended(bos.of_text(tokenizer(document.text)["input_ids"]), tokenizer)))
            starts.append(total)
            hashes.append(document.hash)
            total += len(rows[-1])
            if most is not None and total >= most:
                break
    return name, torch.cat(rows), starts, hashes


def _usable_examples(
    documents: Iterable[Document], tokenizer: Any, seq_len: int, bos: BosRule
) -> Iterator[tuple[Document, list[int], list[tuple[int, int]]]]:
    """Documents with their tokens, at most ``seq_len``, and the spans of these that are not counted; something is."""
    for document in documents:
        if document.text.strip():
            ids, uncounted = _encode(document, tokenizer, bos)
            ids = ids[:seq_len]
            if sum(min(end, seq_len) - start for start, end in uncounted if start < seq_len) < len(ids):
                yield document, ids, uncounted


def _encode(document: Document, tokenizer: Any, bos: BosRule) -> tuple[list[int], list[tuple[int, int]]]:
    if document.messages:
        return encode_conversation(document.messages, tokenizer, where_from(document), bos)
    begin = [] if bos.begins is None else [bos.begins]
    ids = [*begin, *ended(bos.of_text(tokenizer(document.text)["input_ids"]), tokenizer)]
    prompt = [*begin, *bos.of_text(tokenizer(document.prompt)["input_ids"])] if document.prompt else []
    return ids, [(0, common_prefix(ids, prompt))]


def where_from(document: Document) -> str:
    """Source and row of a conversation, for messages."""
    return f"source {document.source!r}: {document.name}"


def _joined_text(documents: Sequence[Document], tokenizer: Any) -> str:
    """Texts with a blank line between them; conversations as the template writes them, which separates them itself."""
    if not any(document.messages for document in documents):
        return "\n\n".join(document.text for document in documents)
    mark = getattr(tokenizer, "bos_token", None) or ""
    return "".join(render_conversation(d.messages, tokenizer, where_from(d)).removeprefix(mark) for d in documents)


def ended(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The tokens with one end-of-text at their end, where the tokenizer has one."""
    end = tokenizer.eos_token_id
    return [*ids] if end is None or (len(ids) and ids[-1] == end) else [*ids, end]


def _wanted(count: int | None, at_least: int | None) -> str:
    return str(count) if count is not None and at_least is None else f"at least {at_least or 1}"


def _check_sizes(**sizes: int | None) -> None:
    for name, value in sizes.items():
        least = 2 if name in ("seq_len", "window") else 1
        if value is not None and value < least:
            raise ConfigurationError(f"{name}: expected a whole number >= {least}, got {value}; correct it")
