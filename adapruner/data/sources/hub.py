"""A data set of the Hugging Face hub, downloaded or streamed by ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapruner.data.documents import Document, row_documents
from adapruner.data.text_source import SOURCE_KINDS, SourceKind
from adapruner.errors import DataError
from adapruner.hub_names import hub_fault


@SOURCE_KINDS.register("hub")
class HubSource(SourceKind):
    """``hub`` is its name there, or a folder that ``datasets.load_dataset`` takes."""

    fields = ("config", "split", "revision", "column", "streaming", "instruction", "chat")

    def read(self) -> Iterator[Document]:
        """One document a row.

        Raises:
            DataError: if the data set cannot be had, with what ``datasets`` says.
        """
        source = self.source
        return row_documents(source.name, self.where, self._rows(), source.column, source.instruction, source.chat)

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        import datasets

        s = self.source
        self._check_name(datasets.config.HF_DATASETS_CACHE)
        try:
            yield from datasets.load_dataset(s.hub, s.config, split=s.split, revision=s.revision, streaming=s.streaming)
        except Exception as error:  # datasets, its file systems and its HTTP client each have their own; all mean: no text
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            script = "scripts are no longer supported" in str(error)
            remedy = "add revision: refs/convert/parquet" if script else "check the name, config and split, or give a local path"
            raise DataError(f"source {s.name!r}: expected the hub data set {s.hub!r}, got: {reason}; {remedy}") from error

    def _check_name(self, cache: str | Path) -> None:
        """What can be had neither here nor from the hub is refused before the library tries for half a minute."""
        s, name = self.source, str(self.source.hub)
        if Path(name).exists() or any(_letters(found.name) == _letters(name) for found in Path(cache).glob("*")):
            return
        fault = hub_fault(name, "dataset", s.revision)
        if fault is not None:
            raise DataError(
                f"source {s.name!r}: expected the hub data set {name!r}, got none: {fault}; correct the name, or give a local path"
            )


def _letters(name: str) -> str:
    """What a data set's name and that of its folder in the cache (``owner___name``) have in common."""
    return re.sub(r"\W|_", "", name.lower())
