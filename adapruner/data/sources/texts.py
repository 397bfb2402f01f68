"""Texts in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapruner.data.documents import Document, check_characters, conversation
from adapruner.data.text_source import SOURCE_KINDS, SourceKind
from adapruner.errors import DataError


@SOURCE_KINDS.register("texts")
class TextsSource(SourceKind):
    """``texts`` is a list of strings, or with ``chat`` of lists of messages; each is one document, named by its position."""

    fields = ("chat",)

    @property
    def where(self) -> str:
        """How many there are."""
        return f"{len(self.source.texts or []):,} texts in memory"

    def check(self) -> None:
        """Something that is no text.

        Raises:
            DataError: naming its position.
        """
        for position, text in enumerate(self.source.texts or []):
            if self.source.chat:
                self._conversation(position, text)
                continue
            if not isinstance(text, str):
                got = f"{type(text).__name__} at position {position}"
                raise DataError(f"source {self.source.name!r}: expected texts as strings, got {got}; convert it")
            check_characters(text, f"source {self.source.name!r}: position {position}")

    def read(self) -> Iterator[Document]:
        """In their order."""
        for position, text in enumerate(self.source.texts or []):
            if self.source.chat:
                yield self._conversation(position, text)
            else:
                yield Document(self.source.name, f"texts#{position}", text)

    def _conversation(self, position: int, messages: Any) -> Document:
        return conversation(self.source.name, f"texts#{position}", messages, f"source {self.source.name!r}: position {position}")
