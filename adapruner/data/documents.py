"""One text with its origin, and how rows with columns become texts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Any

from adapruner.data.conversations import Message, check_messages, text_of
from adapruner.data.instructions import REQUIRED_COLUMNS, render
from adapruner.errors import DataError

#: The column of a conversation where none is named.
CHAT_COLUMN = "messages"


@dataclass(frozen=True)
class Document:
    """One text with its origin."""

    source: str
    """The name of its :class:`~adapruner.data.text_source.TextSource`."""
    name: str
    """Where in the source: row number, or file and piece."""
    text: str
    """The whole text. May be blank: some evaluation protocols join blank rows too."""
    prompt: str = ""
    """For instruction rows, the part of ``text`` before the response; otherwise empty."""
    messages: Sequence[Message] = ()
    """Of a conversation, which the model's chat template writes; ``text`` is then what is said in it."""

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the text's SHA-256."""
        return hash_text(self.text)

    @property
    def position(self) -> float:
        """The hash as a number in [0, 1), which ``part`` chooses by (52 bits, exact in a float)."""
        return int(self.hash[:13], 16) / 16**13


def hash_text(text: str) -> str:
    """First 16 hex digits of the text's SHA-256.

    >>> hash_text("abc")
    'ba7816bf8f01cfea'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_characters(text: str, where: str) -> None:
    """Refuses half of a character, which JSON can write and no tokenizer takes.

    Raises:
        DataError: if there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: expected whole characters, got the lone surrogate {text[error.start]!a}; mend or drop the row") from None


def draw_documents(documents: Iterable[Document], characters: int, seed: int) -> list[Document]:
    """All documents when together they are short enough, else a random sample of at least so many characters.

    One pass; memory holds the sample only. The documents keep their order; blank ones are left out.

    Args:
        documents: any number of them, but an end there must be.
        characters: how much text to keep.
        seed: decides the sample.
    """
    generator = random.Random(seed)
    kept: list[tuple[float, int, Document]] = []  # the document with the largest draw comes first, and goes first
    total = 0
    for position, document in enumerate(d for d in documents if d.text.strip()):
        heappush(kept, (-generator.random(), position, document))
        total += len(document.text)
        while total - len(kept[0][2].text) >= characters:
            total -= len(heappop(kept)[2].text)
    return [document for _, _, document in sorted(kept, key=lambda entry: entry[1])]


def conversation(source: str, name: str, messages: Any, where: str) -> Document:
    """One conversation as a document.

    Args:
        source: name of the source.
        name: of the document.
        messages: a list of objects with ``role`` and ``content``.
        where: source and row, for messages.

    Raises:
        DataError: if they are no messages, or have half of a character.
    """
    found = check_messages(messages, where)
    text = text_of(found)
    check_characters(text, where)
    return Document(source, name, text, messages=found)


def needed_columns(column: str, instruction: bool, chat: bool) -> tuple[str, ...]:
    """Columns that every row has to have.

    >>> needed_columns("text", False, True)
    ('messages',)
    """
    return REQUIRED_COLUMNS if instruction else (CHAT_COLUMN if chat and column == "text" else column,)


def row_documents(
    source: str, label: str, rows: Iterable[Mapping[str, Any]], column: str = "text", instruction: bool = False, chat: bool = False
) -> Iterator[Document]:
    """One document of each row.

    Args:
        source: name of the source.
        label: file or data set, for messages and the documents' names.
        column: the one with the text.
        instruction: rows have ``instruction``, ``input`` and ``output``, which become one text by the Alpaca template.
        chat: the column holds the messages of a conversation; of the default column's name, it is ``messages``.

    Raises:
        DataError: if a row lacks a column, or holds no text or messages there.
    """
    column = CHAT_COLUMN if chat and column == "text" else column
    needed = needed_columns(column, instruction, chat)
    for number, row in enumerate(rows):
        for name in needed:
            if name not in row:
                there = ", ".join(map(str, row)) or "none"
                remedy = "give chat: true" if CHAT_COLUMN in row and not chat else "name one of them"
                raise DataError(f"source {source!r}: expected a column {name!r} in {label!r}, got the columns {there}; {remedy}")
        if chat:
            yield conversation(source, f"{label}#{number}", row[column], f"source {source!r}: row {number} of {label!r}")
            continue
        strings = {name: "" if row.get(name) is None else row[name] for name in ((*needed, "input") if instruction else needed)}
        for name, value in strings.items():
            if not isinstance(value, str):
                got = f"{type(value).__name__} in row {number} of {label!r}"
                raise DataError(f"source {source!r}: expected text in column {name!r}, got {got}; convert it")
            check_characters(value, f"source {source!r}: row {number} of {label!r}")
        prompt, text = render(strings) if instruction else ("", strings[column])
        yield Document(source, f"{label}#{number}", text, prompt)
