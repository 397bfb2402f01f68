"""Where text comes from: a hub data set, files of one's own, or the built-in corpus."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path
from typing import Any

from adapruner.data.files import is_text, list_files, read_rows, read_text_pieces
from adapruner.data.instructions import REQUIRED_COLUMNS, render
from adapruner.demo.corpus import SOURCES, SPLITS, load_demo_corpus
from adapruner.errors import DataError, nearest


@dataclass(frozen=True)
class TextSource:
    """One named source of documents. Exactly one of ``hub``, ``path`` and ``demo`` is given.

    Raises:
        DataError: if the options contradict each other or one of them would have no effect.
    """

    name: str
    """The name in tables, plans and messages."""
    hub: str | None = None
    """A data set on the Hugging Face hub, such as ``Salesforce/wikitext``."""
    config: str | None = None
    """Hub only: the data set's configuration, such as ``wikitext-2-raw-v1``."""
    split: str = "train"
    """Hub: the split to read. Demo: ``calibration``, ``search``, ``recovery``, ``test``, or ``train`` (what the demo model
    was trained on). Files have no splits; see ``part``."""
    revision: str | None = None
    """Hub only: branch, tag or commit; ``refs/convert/parquet`` for data sets that still rest on a loading script."""
    path: str | None = None
    """A file, or a folder of files: .txt, .md, .jsonl, .json (an array), .parquet; all but the last also with .gz."""
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

    def __post_init__(self) -> None:
        given = [key for key in ("hub", "path", "demo") if getattr(self, key) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise DataError(f"source {self.name!r}: expected exactly one of hub, path and demo, got {got}; keep one")
        self._refuse_options_without_effect(given[0])
        if self.documents is not None and self.documents < 1:
            raise DataError(f"source {self.name!r}: expected documents >= 1 or null, got {self.documents}; give null for all")
        if len(self.part) != 2 or not 0 <= self.part[0] < self.part[1] <= 1:
            raise DataError(f"source {self.name!r}: expected part [low, high] with 0 <= low < high <= 1, got {list(self.part)}; correct it")

    def _refuse_options_without_effect(self, kind: str) -> None:
        if self.instruction and self.column != "text":
            raise DataError(f"source {self.name!r}: expected no column with instruction, got {self.column!r}; leave it out")
        idle = {
            "path": {"config": None, "revision": None, "streaming": False, "split": "train"},
            "demo": {"config": None, "revision": None, "streaming": False, "column": "text", "instruction": False},
            "hub": {},
        }
        for option, default in idle[kind].items():
            if getattr(self, option) != default:
                remedy = "leave it out" if option != "split" else "leave it out and choose documents with part"
                got = getattr(self, option)
                raise DataError(f"source {self.name!r}: expected no {option} with {kind}, got {got!r}; {remedy}")


@dataclass(frozen=True)
class Document:
    """One text with its origin."""

    source: str
    """The name of its :class:`TextSource`."""
    name: str
    """Where in the source: row number, or file and piece."""
    text: str
    """The whole text. May be blank: some evaluation protocols join blank rows too."""
    prompt: str = ""
    """For instruction rows, the part of ``text`` before the response; otherwise empty."""

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def position(self) -> float:
        """The hash as a number in [0, 1), which ``part`` chooses by (52 bits, exact in a float)."""
        return int(self.hash[:13], 16) / 16**13


def check_source(source: TextSource) -> None:
    """Everything that can be refused without reading: missing files, unknown suffixes and demo names.

    Raises:
        DataError: naming what is wrong.
    """
    if source.path is not None:
        try:
            files = list_files(Path(source.path).expanduser())
        except DataError as error:
            raise DataError(f"source {source.name!r}: {error}") from None
        without = next((f.name for f in files if is_text(f)), None)
        if without and (source.instruction or source.column != "text"):
            option = "instruction" if source.instruction else f"column {source.column!r}"
            raise DataError(f"source {source.name!r}: expected files with columns for {option}, got {without!r}; give .jsonl or .parquet")
    if source.demo is not None and source.demo not in (*SOURCES, "all"):
        raise DataError(f"source {source.name!r}: expected a demo source, got {source.demo!r}; {nearest(source.demo, (*SOURCES, 'all'))}")
    if source.demo is not None and source.split not in SPLITS:
        raise DataError(f"source {source.name!r}: expected a demo split, got {source.split!r}; {nearest(source.split, SPLITS)}")


def read_documents(source: TextSource) -> Iterator[Document]:
    """The documents of a source, one by one, in a fixed order; nothing is read ahead.

    Rows with empty text are kept (LLM-Pruner's evaluation joins WikiText's empty rows too).

    Raises:
        DataError: at once for what :func:`check_source` refuses; while reading for a missing column, a damaged file, a
            hub that cannot be reached, or when no document had any text.
    """
    check_source(source)
    return _chosen(source)


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


def _chosen(source: TextSource) -> Iterator[Document]:
    low, high = source.part
    seen = readable = False
    kept = (d for d in _all_documents(source) if low <= d.position < high)
    for document in islice(kept, source.documents):
        seen, readable = True, readable or bool(document.text.strip())
        yield document
    if not readable:
        where = source.path or source.hub or f"the demo corpus, split {source.split!r}"
        reason = "only blank ones" if seen else f"none in part {list(source.part)}"
        raise DataError(f"source {source.name!r}: expected documents with text in {where}, got {reason}; give other text or widen part")


def _all_documents(source: TextSource) -> Iterator[Document]:
    if source.demo is not None:
        for piece in load_demo_corpus(source.split, None if source.demo == "all" else source.demo):
            yield Document(source.name, f"{piece.source}/{piece.name}", piece.text)
    elif source.path is not None:
        root = Path(source.path).expanduser()
        for file in list_files(root):
            label = file.name if file == root else file.relative_to(root).as_posix()
            if is_text(file):
                yield from (Document(source.name, f"{label}#{i}", text) for i, text in enumerate(read_text_pieces(file)))
            else:
                yield from _row_documents(source, label, read_rows(file))
    else:
        yield from _row_documents(source, str(source.hub), _hub_rows(source))


def _row_documents(source: TextSource, label: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Document]:
    needed = REQUIRED_COLUMNS if source.instruction else (source.column,)
    texts = (*REQUIRED_COLUMNS, "input") if source.instruction else needed
    for number, row in enumerate(rows):
        for column in needed:
            if column not in row:
                there = ", ".join(map(str, row)) or "none"
                raise DataError(
                    f"source {source.name!r}: expected a column {column!r} in {label!r}, got the columns {there}; name one of them"
                )
        strings = {column: "" if row.get(column) is None else row[column] for column in texts}
        for column, value in strings.items():
            if not isinstance(value, str):
                got = type(value).__name__
                raise DataError(
                    f"source {source.name!r}: expected text in column {column!r}, got {got} in row {number} of {label!r}; convert it"
                )
        prompt, text = render(strings) if source.instruction else ("", strings[source.column])
        yield Document(source.name, f"{label}#{number}", text, prompt)


def _hub_rows(source: TextSource) -> Iterator[Mapping[str, Any]]:
    import datasets

    try:
        yield from datasets.load_dataset(
            source.hub, source.config, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except Exception as error:  # datasets, its file systems and its HTTP client each have their own; all mean: no text
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        script = "scripts are no longer supported" in str(error)
        remedy = "add revision: refs/convert/parquet" if script else "check the name, config and split, or give a local path"
        raise DataError(f"source {source.name!r}: expected the hub data set {source.hub!r}, got: {reason}; {remedy}") from error
