"""Token windows of every set, drawn from text sources. A source draws the same whatever other sources there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch

from adapruner.data.documents import Document, draw_documents
from adapruner.data.leaks import SHORT_CHARACTERS
from adapruner.data.sets import EvaluationSet
from adapruner.data.text_source import TextSource, read_documents
from adapruner.data.windows import TextWindows, joined_windows, pad_instructions, sample_windows
from adapruner.errors import DataError

#: Samples are drawn from a random part of a large source, so that it is not tokenised whole: so many characters for
#: each token wanted, which at 4 characters a token is eight times the text.
_CHARACTERS_PER_TOKEN = 32


class WindowDrawer:
    """Draws token windows with one tokenizer and one seed.

    Args:
        tokenizer: ``tokenizer(text)["input_ids"]`` and ``eos_token_id``.
        seed: each role and source has its own random numbers, derived from it.
    """

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.short_documents: set[str] = set()
        """Hashes of the documents read so far that are too short to count as a leak."""

    def each(self, role: str, sources: Sequence[TextSource], seq_len: int, count: int | None) -> TextWindows:
        """``count`` windows ``[seq_len]`` from each source, or all when it is ``None``."""
        return TextWindows.concatenate([self.draw(role, source, seq_len, count) for source in sources])

    def evenly(self, role: str, sources: Sequence[TextSource], seq_len: int, count: int | None) -> TextWindows:
        """``count`` windows ``[seq_len]`` in all, shared out by :func:`shares`, or all when it is ``None``."""
        counts = shares(count, len(sources))
        return TextWindows.concatenate([self.draw(role, s, seq_len, n) for s, n in zip(sources, counts, strict=True)])

    def draw(self, role: str, source: TextSource, seq_len: int, count: int | None, at_least: int | None = None) -> TextWindows:
        """``count`` windows ``[seq_len]`` from one source, or all when it is ``None``; fewer, down to ``at_least``, where that is given.

        Raises:
            DataError: if the source cannot be read, or has too little text.
        """
        seed, documents, pool = self._seed_of(role, source.name), read_documents(source), None
        if source.streaming:
            pool = count  # read only as far as needed
        elif count is not None:
            documents = iter(draw_documents(documents, count * seq_len * _CHARACTERS_PER_TOKEN, seed))
        build = pad_instructions if source.instruction else sample_windows
        label, documents = f"{role}, source {source.name!r}", self._note_short(documents)
        return _named(label, build, documents, self.tokenizer, seq_len, count, seed, at_least=at_least, pool=pool)

    def shuffled(self, role: str, windows: TextWindows) -> TextWindows:
        """In random order, so that any first part is a fair sample."""
        return windows.select(torch.randperm(len(windows), generator=torch.Generator().manual_seed(self._seed_of(role, "order"))))

    def joined(self, item: EvaluationSet) -> dict[tuple[str, int], TextWindows]:
        """(name, window length) -> the windows of one evaluation set."""
        documents = list(self._note_short(read_documents(item.source)))
        return {(item.name, n): _named(item.name, joined_windows, documents, self.tokenizer, n, item.limit) for n in item.windows}

    def _seed_of(self, role: str, name: str) -> int:
        """A source draws the same whatever other sources there are, and differently in each role."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{role}/{name}".encode()).digest()[:7], "big")

    def _note_short(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if len(document.text) < SHORT_CHARACTERS:
                self.short_documents.add(document.hash)
            yield document


def shares(count: int | None, parts: int) -> list[int | None]:
    """A number in equal parts; the first ones have one more where it does not divide.

    >>> shares(7, 3)
    [3, 2, 2]
    """
    if count is None:
        return [None] * parts
    share, rest = divmod(count, parts)
    return [share + (i < rest) for i in range(parts)]


def _named(label: str, build: Any, *arguments: Any, **options: Any) -> TextWindows:
    """Calls a window builder; its errors say which set they are about."""
    try:
        return cast("TextWindows", build(*arguments, **options))
    except DataError as error:
        raise DataError(f"data, {label}: {error}") from error
