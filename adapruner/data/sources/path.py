"""A local file, or a folder of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapruner.data.documents import Document, row_documents
from adapruner.data.files import is_text, list_files, read_rows, read_text_pieces
from adapruner.data.text_source import SOURCE_KINDS, SourceKind
from adapruner.errors import DataError


@SOURCE_KINDS.register("path")
class FileSource(SourceKind):
    """Text files give pieces cut at blank lines, files with rows one document a row."""

    fields = ("column", "instruction")

    @property
    def _root(self) -> Path:
        return Path(str(self.source.path)).expanduser()

    def check(self) -> None:
        """Missing files, unknown suffixes, and text files where a column is named.

        Raises:
            DataError: naming what is wrong.
        """
        source = self.source
        try:
            files = list_files(self._root)
        except DataError as error:
            raise DataError(f"source {source.name!r}: {error}") from None
        without = next((f.name for f in files if is_text(f)), None)
        if without and (source.instruction or source.column != "text"):
            option = "instruction" if source.instruction else f"column {source.column!r}"
            raise DataError(f"source {source.name!r}: expected files with columns for {option}, got {without!r}; give .jsonl or .parquet")

    def read(self) -> Iterator[Document]:
        """Files in the order of their names.

        Raises:
            DataError: if a file is damaged, or a row lacks its column.
        """
        source, root = self.source, self._root
        for file in list_files(root):
            label = file.name if file == root else file.relative_to(root).as_posix()
            if is_text(file):
                yield from (Document(source.name, f"{label}#{i}", text) for i, text in enumerate(read_text_pieces(file)))
            else:
                yield from row_documents(source.name, label, read_rows(file), source.column, source.instruction)
