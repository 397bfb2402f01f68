"""Token windows of every set, drawn from text sources. A source draws the same whatever other sources there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from adapruner.data.bos import BosRule
from adapruner.data.card import part_in_words
from adapruner.data.documents import Document, draw_documents
from adapruner.data.leaks import SHORT_CHARACTERS
from adapruner.data.sets import EvaluationSet
from adapruner.data.text_source import TextSource, read_documents
from adapruner.data.too_little_text import TextRead, TooLittleTextError, Wanted
from adapruner.data.windows import TextWindows, joined_windows, pad_instructions, sample_windows
from adapruner.errors import DataError, is_shortened

#: Samples are drawn from a random part of a large source, so that it is not tokenised whole: so many characters for
#: each token wanted, which at 4 characters a token is eight times the text.
_CHARACTERS_PER_TOKEN = 32


#: With fewer windows neither statistics nor an objective mean anything.
LEAST_WINDOWS = 4


class WindowDrawer:
    """Draws token windows with one tokenizer and one seed.

    Args:
        tokenizer: ``tokenizer(text)["input_ids"]`` and ``eos_token_id``.
        seed: each role and source has its own random numbers, derived from it.
        take_fewer: where a source has less text than asked for, take what it has, down to :data:`LEAST_WINDOWS`; among sources that share
            a number of windows, those with too little are left out as long as another has enough.
        bos: one of :data:`adapruner.data.bos.POLICIES`.

    Raises:
        ConfigurationError: as :meth:`adapruner.data.bos.BosRule.of`.
    """

    def __init__(self, tokenizer: Any, seed: int, take_fewer: bool = False, bos: str = "auto") -> None:
        self.bos = BosRule.of(tokenizer, bos)
        self.tokenizer, self.seed, self.take_fewer = tokenizer, seed, take_fewer
        self.short_documents: set[str] = set()
        """Hashes of the documents read so far that are too short to count as a leak."""
        self.short_of: list[str] = []
        self.limited: list[str] = []
        """The sources that had less text than asked for: ``calibration 'wiki' 12 of 64 windows``."""

    def each(self, role: str, sources: Sequence[TextSource], seq_len: int, count: int | None) -> TextWindows:
        """``count`` windows ``[seq_len]`` from each source, or all when it is ``None``."""
        return TextWindows.concatenate([self._draw(role, source, seq_len, count, LEAST_WINDOWS) for source in sources])

    def evenly(
        self, role: str, sources: Sequence[TextSource], seq_len: int, count: int | None, shares: Mapping[str, float] | None = None
    ) -> TextWindows:
        """``count`` windows ``[seq_len]`` in all, of each source equally many (the first ones one more where that does not divide).

        Args:
            shares: name of a source -> how many times as many it gets as one that is not named.
        """
        counts = apportion(count or 0, [(shares or {}).get(source.name, 1.0) for source in sources])
        parts: list[TextWindows] = []
        for number, source in enumerate(sources):
            wanted = None if count is None else counts[number]
            try:
                parts.append(self._draw(role, source, seq_len, wanted, -(-LEAST_WINDOWS // len(sources))))
            except TooLittleTextError:
                last = number == len(sources) - 1
                if not self.take_fewer or count is None or (last and not parts):
                    raise
                self.short_of.append(f"{role} {source.name!r} none of {wanted} windows")
        return TextWindows.concatenate(parts)

    def shuffled(self, role: str, windows: TextWindows) -> TextWindows:
        """In random order, so that any first part is a fair sample."""
        return windows.select(torch.randperm(len(windows), generator=torch.Generator().manual_seed(self._seed_of(role, "order"))))

    def joined(self, item: EvaluationSet) -> dict[tuple[str, int], TextWindows]:
        """(name, window length) -> the windows of one evaluation set."""
        given = item.source.reader.windows
        if given is not None:
            return {(item.name, given.seq_len): given}
        read, longest = TextRead(), max(item.windows)
        wanted = Wanted(1, longest, self.bos.room(longest), at_least=True, remedies=_remedies(item.source, "a smaller window"))
        named = "" if item.name == item.source.name else f" {item.name!r}"
        with _refusing(f"evaluation{named}", item.source, read, wanted):
            documents = list(self._note_short(read_documents(item.source, read)))
            found = {(item.name, n): joined_windows(documents, self.tokenizer, n, item.limit, self.bos) for n in item.windows}
        for (name, length), windows in found.items():
            if windows.left_out:
                every = len(windows) + windows.left_out
                self.limited.append(f"{name} on the first {len(windows):,} of {every:,} windows of {length} tokens")
        return found

    def _draw(self, role: str, source: TextSource, seq_len: int, count: int | None, least: int) -> TextWindows:
        given = source.reader.windows
        if given is not None:
            return given
        seed, pool, read = self._seed_of(role, source.name), None, TextRead()
        at_least = min(least, count) if self.take_fewer and count is not None else None
        rows = source.instruction or source.chat
        build = pad_instructions if rows else sample_windows
        fewer = ["fewer samples"] if count is not None and at_least is None else []  # else what there is would be taken
        remedies = _remedies(source, *fewer, f"a {'larger' if rows else 'smaller'} seq_len")
        wanted = Wanted(at_least or count or 1, seq_len, self.bos.room(seq_len), not fewer, rows, remedies)
        with _refusing(role, source, read, wanted):
            documents = read_documents(source, read)
            if source.streaming:
                pool = count  # read only as far as needed
            elif count is not None:
                documents = iter(draw_documents(documents, count * seq_len * _CHARACTERS_PER_TOKEN, seed))
            documents = self._note_short(documents)
            windows = build(documents, self.tokenizer, seq_len, count, seed, at_least=at_least, pool=pool, bos=self.bos)
        if count is not None and len(windows) < count:
            self.short_of.append(f"{role} {source.name!r} {len(windows)} of {count} windows")
        return windows

    def _seed_of(self, role: str, name: str) -> int:
        """A source draws the same whatever other sources there are, and differently in each role."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{role}/{name}".encode()).digest()[:7], "big")

    def _note_short(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if len(document.text) < SHORT_CHARACTERS:
                self.short_documents.add(document.hash)
            yield document


def apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in these proportions with the sum ``count``, each at least 1: by largest remainders, earlier ones first.

    >>> apportion(7, [1.0, 1.0, 1.0]), apportion(8, [3.0, 1.0]), apportion(8, [100.0, 1.0])
    ([3, 2, 2], [6, 2], [7, 1])
    """
    exact = [count * share / sum(shares) for share in shares]
    found = [max(1, int(value)) for value in exact]
    while sum(found) < count:
        lowest = max(range(len(found)), key=lambda i: (exact[i] - found[i], -i))
        found[lowest] += 1
    while sum(found) > count and max(found) > 1:
        highest = max((i for i in range(len(found)) if found[i] > 1), key=lambda i: (found[i] - exact[i], found[i]))
        found[highest] -= 1
    return found


def _remedies(source: TextSource, *of_windows: str) -> list[str]:
    """What helps besides more text; from Python nobody chooses a part, and behind a short option neither part nor length."""
    if is_shortened("data"):
        return []
    return [*of_windows, *(["a wider part"] if part_in_words(source) and source.texts is None else [])]


@contextmanager
def _refusing(role: str, source: TextSource, read: TextRead, wanted: Wanted) -> Iterator[None]:
    """Errors inside say which set they are about; too little text, how much there is and how much it takes."""
    named = f"source {source.name!r}"
    try:
        yield
    except TooLittleTextError as error:
        missing = wanted.missing_from(read, error.found, round(source.part[1] - source.part[0], 9))
        raise TooLittleTextError(f"data, {role}, {named}{part_in_words(source)}: {missing}", error.found, role) from error
    except DataError as error:
        where = "" if str(error).startswith(named) else f"{named}: "
        raise type(error)(f"data, {role}, {where}{error}") from error
