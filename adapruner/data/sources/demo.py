"""The built-in corpus: documentation that comes with Python and with adapruner's dependencies."""

from __future__ import annotations

from collections.abc import Iterator

from adapruner.data.documents import Document
from adapruner.data.text_source import SOURCE_KINDS, SourceKind
from adapruner.demo.corpus import SOURCES, SPLITS, load_demo_corpus
from adapruner.errors import DataError, nearest


@SOURCE_KINDS.register("demo")
class DemoSource(SourceKind):
    """``demo`` is one of the corpus's sources or ``all``, ``split`` one of its splits."""

    fields = ("split",)

    @property
    def where(self) -> str:
        """Which source of the corpus."""
        return f"demo corpus {self.source.demo}"

    def check(self) -> None:
        """Names of sources and splits.

        Raises:
            DataError: with the nearest name.
        """
        source, known = self.source, (*SOURCES, "all")
        if source.demo not in known:
            raise DataError(f"source {source.name!r}: expected a demo source, got {source.demo!r}; {nearest(str(source.demo), known)}")
        if source.split not in SPLITS:
            raise DataError(f"source {source.name!r}: expected a demo split, got {source.split!r}; {nearest(source.split, SPLITS)}")

    def read(self) -> Iterator[Document]:
        """One document a topic or file."""
        source = self.source
        for piece in load_demo_corpus(source.split, None if source.demo == "all" else source.demo):
            yield Document(source.name, f"{piece.source}/{piece.name}", piece.text)
