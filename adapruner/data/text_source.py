"""Where text comes from: one named source of documents, of one of the kinds in :mod:`adapruner.data.sources`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from adapruner.argument_checks import check_fields
from adapruner.data.documents import Document
from adapruner.data.too_little_text import TextRead, TooLittleTextError, nothing_in_part
from adapruner.errors import DataError, nearest
from adapruner.registry import Registry

if TYPE_CHECKING:  # a source is judged before torch is loaded
    from adapruner.data.windows import TextWindows


class SourceKind:
    """How the documents of one kind of :class:`TextSource` are read; a new kind is a subclass with a name.

    >>> @SOURCE_KINDS.register("counted")
    ... class Counted(SourceKind):
    ...     options = ("count",)
    ...
    ...     def read(self):
    ...         for i in range(self.source.options["count"]):
    ...             yield Document(self.source.name, str(i), f"text number {i}")
    >>> [document.text for document in read_documents(TextSource("numbers", kind="counted", options={"count": 2}))]
    ['text number 0', 'text number 1']
    >>> SOURCE_KINDS.remove("counted")

    Args:
        source: what is read; its other fields are checked already.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    """Fields of :class:`TextSource` that mean something to this kind, beside ``name``, ``documents`` and ``part``."""
    options: ClassVar[tuple[str, ...]] = ()
    """Names that ``options`` may have."""

    def __init__(self, source: TextSource) -> None:
        self.source = source

    @property
    def where(self) -> str:
        """What is read, in words, for messages and the report's table of data."""
        options = (f"{name} {value}" for name, value in self.source.options.items())
        return ", ".join([str(self.source.hub or self.source.path or self.source.kind), *options])

    @property
    def windows(self) -> TextWindows | None:
        """Token windows, where the kind has these instead of documents; drawn as they are, whatever length and number is asked for."""
        return None

    @property
    def piece(self) -> int:
        """Characters after which a text surely counts as another document; 0 where the kind does not cut texts."""
        return 0

    def check(self) -> None:
        """Everything that can be refused without reading.

        Raises:
            DataError: naming what is wrong.
        """

    def read(self) -> Iterator[Document]:
        """All documents, one by one, in a fixed order; ``documents`` and ``part`` are applied afterwards."""
        raise NotImplementedError


SOURCE_KINDS: Registry[type[SourceKind]] = Registry("kind of data source", "adapruner.data.sources", "adapruner.data_sources")
"""Every kind by its name; a shipped one has its name as a field of :class:`TextSource`, any other is named by ``kind``."""

#: Fields that name the kind and what is read; exactly one is given.
_SELECTORS = ("hub", "path", "demo", "texts", "kind")
_ALWAYS = ("name", "documents", "part", "options", *_SELECTORS)


@dataclass(frozen=True)
class TextSource:
    """One named source of documents. Exactly one of ``hub``, ``path``, ``demo``, ``texts`` and ``kind`` is given.

    Raises:
        DataError: if the options contradict each other or one of them would have no effect.
        ConfigurationError: if ``kind`` is unknown.

    >>> TextSource("mine", texts=["One text.", "Another one."]).part
    [0.0, 1.0]
    """

    name: str
    """The name in tables, plans and messages."""
    hub: str | None = None
    """A data set on the Hugging Face hub, such as ``Salesforce/wikitext``."""
    config: str | None = None
    """Hub only: the data set's configuration, such as ``wikitext-2-raw-v1``."""
    split: str = "train"
    """Hub: the split to read. Demo: ``calibration``, ``search``, ``recovery``, ``test``, or ``train`` (what the demo model
    was trained on). A folder whose files name their splits, as one cloned from the hub or written by ``save_to_disk``: the files to
    read. A single file has no splits; see ``part``."""
    revision: str | None = None
    """Hub only: branch, tag or commit; ``refs/convert/parquet`` for data sets that still rest on a loading script."""
    path: str | None = None
    """A file, or a folder of files: .txt, .md, .jsonl, .json (an array), .csv and .tsv (columns named in the first line), .parquet; all
    but the last also with .gz. Cards and licences of a folder (``README.md``) are left out. A folder that ``datasets`` wrote by
    ``save_to_disk`` is read as such."""
    demo: str | None = None
    """A source of the built-in corpus, or ``all``."""
    column: str = "text"
    """The column with the text, where rows have columns."""
    documents: int | None = None
    """Stop after so many documents (after ``part`` chose)."""
    part: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """``[low, high)``: keep the documents whose text hashes into this part of [0, 1). Disjoint parts never share a text."""
    streaming: bool = False
    """Hub only: read over the network as needed, without a download of the whole split."""
    instruction: bool = False
    """Rows have ``instruction``, ``input`` and ``output``, which become one text by the Alpaca template."""
    chat: bool = False
    """Rows have ``messages`` (or what ``column`` names): objects with ``role`` and ``content``, which the model's own chat template
    writes; only what the assistant says is counted."""
    texts: list[str] | None = field(default=None, repr=False)
    """The texts themselves, each one document."""
    kind: str | None = None
    """A kind of source of one's own: the name that its class was registered by (:data:`SOURCE_KINDS`)."""
    options: dict[str, Any] = field(default_factory=dict)
    """With ``kind``: what that kind is told."""

    def __post_init__(self) -> None:
        check_fields(self, "source.", but=("texts",))
        given = [key for key in _SELECTORS if getattr(self, key) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise DataError(f"source {self.name!r}: expected exactly one of {', '.join(_SELECTORS[:-1])} and kind, got {got}; keep one")
        if self.kind in _SELECTORS:
            raise DataError(f"source {self.name!r}: expected the field {self.kind}, got kind {self.kind!r}; give {self.kind} instead")
        self._refuse_options_without_effect(self.kind or given[0])
        if self.documents is not None and self.documents < 1:
            raise DataError(f"source {self.name!r}: expected documents >= 1 or null, got {self.documents}; give null for all")
        if len(self.part) != 2 or not 0 <= self.part[0] < self.part[1] <= 1:
            raise DataError(f"source {self.name!r}: expected part [low, high] with 0 <= low < high <= 1, got {list(self.part)}; correct it")

    @property
    def reader(self) -> SourceKind:
        """What reads this source."""
        kind = self.kind or next(key for key in _SELECTORS if getattr(self, key) is not None)
        return SOURCE_KINDS.find(kind, f"source {self.name!r}, kind")(self)

    def _refuse_options_without_effect(self, kind: str) -> None:
        if self.instruction and self.chat:
            raise DataError(f"source {self.name!r}: expected instruction or chat, got both; keep the one that the rows are")
        if self.instruction and self.column != "text":
            raise DataError(f"source {self.name!r}: expected no column with instruction, got {self.column!r}; leave it out")
        reader = self.reader
        for option in fields(self):
            value, default = getattr(self, option.name), option.default
            if default is not MISSING and value != default and option.name not in (*_ALWAYS, *reader.fields):
                remedy = "leave it out" if option.name != "split" else "leave it out and choose documents with part"
                raise DataError(f"source {self.name!r}: expected no {option.name} with {kind}, got {value!r}; {remedy}")
        unknown = next((name for name in self.options if name not in reader.options), None)
        if unknown is not None:
            known = nearest(unknown, reader.options) if reader.options else "leave it out"
            raise DataError(f"source {self.name!r}: expected options that {kind} has, got {unknown!r}; {known}")


def read_documents(source: TextSource, read: TextRead | None = None) -> Iterator[Document]:
    """The documents of a source, one by one, in a fixed order; nothing is read ahead.

    Rows with empty text are kept (LLM-Pruner's evaluation joins WikiText's empty rows too).

    Args:
        source: the one to read.
        read: counts what is met.

    Raises:
        DataError: at once for what :meth:`SourceKind.check` refuses; while reading for a missing column, a damaged file, a
            hub that cannot be reached, or when no document had any text.
        TooLittleTextError: while reading, where there is text and none of it is in the source's ``part``.
    """
    reader = source.reader
    reader.check()
    read = read or TextRead()
    read.piece = reader.piece
    return _chosen(source, reader, read)


def _chosen(source: TextSource, reader: SourceKind, read: TextRead) -> Iterator[Document]:
    yield from islice(_in_part(source, reader, read), source.documents)
    if not read.all_documents:
        got = "only blank ones" if read.blank else "none"
        raise DataError(f"source {source.name!r}: expected documents with text in {reader.where}, got {got}; give other text")
    if not read.documents:
        raise TooLittleTextError(f"source {source.name!r}: {nothing_in_part(read, list(source.part), reader.where)}")


def _in_part(source: TextSource, reader: SourceKind, read: TextRead) -> Iterator[Document]:
    low, high = source.part
    for document in reader.read():
        kept = low <= document.position < high
        read.note(document.text, kept)
        if kept:
            yield document
