"""What is said where a source has too little text for a set: what there was, what it takes, and what can be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adapruner.errors import DataError

#: Of a token, where no text was tokenised; usual for English.
_CHARACTERS = 4.0
#: A part is said to need so many documents that at most one text of twenty would have none in it.
_UNLUCKY = 0.05


class TooLittleTextError(DataError):
    """A source has text, but too little of it.

    Args:
        message: the whole line.
        found: tokens that there were, or rows where each is a window; 0 where nothing was tokenised.
        role: of the set that it is too little for.
    """

    def __init__(self, message: str, found: int = 0, role: str = "") -> None:
        super().__init__(message)
        self.found, self.role = found, role


@dataclass
class TextRead:
    """How much text was met in a source; documents and characters without blank ones."""

    documents: int = 0
    """In the part that is read."""
    characters: int = 0
    all_documents: int = 0
    """In the whole source."""
    all_characters: int = 0
    blank: int = 0
    """Documents without text."""
    piece: int = 0
    """Characters after which a long text surely counts as another document; 0 where it never does."""

    def note(self, text: str, kept: bool) -> None:
        """One document more."""
        if not text.strip():
            self.blank += 1
            return
        self.all_documents, self.all_characters = self.all_documents + 1, self.all_characters + len(text)
        if kept:
            self.documents, self.characters = self.documents + 1, self.characters + len(text)

    @property
    def a_document(self) -> float:
        """Characters of a document; of the one that is a whole short text those of a long text's pieces."""
        return max(self.all_characters / self.all_documents, self.piece if self.all_documents == 1 else 0)

    @property
    def in_words(self) -> str:
        """``1 of 2 documents, 1,480 of 6,000 characters``, or the numbers of the whole where all of it was read."""
        if self.documents == self.all_documents:
            return f"{_counted(self.documents, 'document')} of {self.characters:,} characters"
        return (
            f"{self.documents:,} of {_counted(self.all_documents, 'document')}, {self.characters:,} of {self.all_characters:,} characters"
        )


@dataclass(frozen=True)
class Wanted:
    """Windows that a set wants of a source."""

    windows: int
    """So many would do."""
    length: int
    """Tokens in a window."""
    room: int
    """Tokens of text in a window: one less where each begins with a begin-of-text token."""
    at_least: bool
    """Whether more were asked for."""
    rows: bool = False
    """Every document is a window of its own."""
    remedies: Sequence[str] = ()
    """What helps besides more text."""

    def missing_from(self, read: TextRead, found: int, share: float) -> str:
        """The line, from ``expected`` on.

        Args:
            read: what the source has.
            found: tokens that there were in the part that was read, or usable rows.
            share: of the documents, which the part has; in (0, 1].

        >>> read = TextRead(documents=1, characters=3000, all_documents=2, all_characters=6000)
        >>> said = Wanted(4, 256, 256, True, remedies=["a smaller seq_len"]).missing_from(read, 900, 0.25)
        >>> print(said.replace("; ", "\\n"))
        expected at least 4 windows of 256 tokens, got 3 (900 tokens) in 1 of 2 documents, 3,000 of 6,000 characters
        give about 4,096 tokens of text (14,000 characters
        this part gets 25 % of them) or a smaller seq_len
        """
        got = f"none of {_counted(read.all_documents, 'document')} ({read.all_characters:,} characters)"
        if read.documents:
            there = f"{found:,}" if self.rows else f"{found // self.room:,} ({_counted(found, 'token')})"
            got = f"{there} in {read.in_words}"
        *others, last = [self._needed(read, found, share), *self.remedies]
        remedy = f"{', '.join(others)} or {last}" if others else last
        return f"expected {self._in_words()}, got {got}; give {'about' if share < 1 else 'at least'} {remedy}"

    def _in_words(self) -> str:
        number = f"at least {self.windows}" if self.at_least else f"{self.windows}"
        if self.rows:
            return f"{number} {_plural(self.windows, 'example')} whose response begins within {self.length} tokens"
        return f"{number} {_plural(self.windows, 'window')} of {self.length} tokens"

    def _needed(self, read: TextRead, found: int, share: float) -> str:
        """In the whole source."""
        of_it = f"; this part gets {100 * share:.3g} % of them" if share < 1 else ""
        if self.rows:
            usable = found / read.documents if found else 1.0
            rows = max(math.ceil(self.windows / share / usable), fewest_documents(share))
            return f"{_counted(rows, 'row')}{of_it and f' ({of_it[2:]})'}"
        wanted, a_token = self.windows * self.room, read.characters / found if found else _CHARACTERS
        tokens = math.ceil(wanted / share)
        if read.documents:  # a part has its share by chance: more than there is now in any case
            tokens = max(tokens, math.ceil(read.all_characters / a_token * wanted / max(1, found)) if share < 1 else 0)
            return f"{tokens:,} tokens of text ({_rounded_up(tokens * a_token):,} characters{of_it})"
        documents = max(fewest_documents(share), math.ceil(tokens * a_token / read.a_document))
        return f"{documents:,} documents ({_rounded_up(documents * read.a_document):,} characters{of_it})"


def fewest_documents(share: float) -> int:
    """Of so many documents one falls into a part with this share of them, but for one text of twenty.

    >>> fewest_documents(0.1), fewest_documents(0.25), fewest_documents(1.0)
    (29, 11, 1)
    """
    return 1 if share >= 1 else math.ceil(math.log(_UNLUCKY) / math.log(1 - share))


def nothing_in_part(read: TextRead, part: list[float], where: str) -> str:
    """The line for a source that has text, and none in its part.

    >>> nothing_in_part(TextRead(all_documents=10, all_characters=40_000), [0.9, 1.0], "my.txt")[:79]
    'expected documents with text in part [0.9, 1.0] of my.txt, got none of 10 (40,0'
    """
    documents = fewest_documents(round(part[1] - part[0], 9))
    characters = _rounded_up(documents * read.a_document)
    return (
        f"expected documents with text in part {part} of {where}, got none of {read.all_documents:,} ({read.all_characters:,} characters); "
        f"give about {documents:,} documents ({characters:,} characters) or widen part"
    )


def _rounded_up(number: float) -> int:
    """To two digits: ``10,222`` -> ``11,000``."""
    size = 10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1)
    return math.ceil(number / size) * size


def _counted(number: int, what: str) -> str:
    return f"{number:,} {_plural(number, what)}"


def _plural(number: int, what: str) -> str:
    return what if number == 1 else f"{what}s"
