"""Export formats: one file, or one package, for each way to write a pruned model.

Every format starts from the folder that :func:`adapruner.export.folder.export_model` writes, in a scratch place: safetensors,
configuration and tokenizer, which converters of every engine read. ``adapruner export RUN OUT --format NAME`` makes ``OUT`` of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from adapruner.export.options import ExportOptions
from adapruner.registry import Registry


@dataclass(frozen=True)
class FormatRecord:
    """What was written."""

    path: Path
    summary: str
    """What it is, to be read behind the path: ``for llama.cpp, llama in float16``."""
    notes: tuple[str, ...] = ()
    """What a reader of the file should know."""


class ExportFormat(Protocol):
    """One way to write a pruned model.

    The command line refuses a target that is there, unless the format has ``is_own(target)`` and that says it may be replaced.
    """

    name: str
    """The name that ``--format`` takes."""

    def check(self, target: Path, options: ExportOptions) -> None:
        """Refuses, before the model is loaded, what could not be written; writes nothing.

        Raises:
            ConfigurationError: if a library is missing, ``target`` is taken, or the options cannot be followed.
        """

    def write(self, folder: Path, target: Path, options: ExportOptions) -> FormatRecord:
        """Writes the model of ``folder``, an export with merged weights, to ``target``; an earlier one there is replaced at the end.

        The folder is a scratch one, which may be moved away. Its weights are in ``options.dtype`` already.

        Raises:
            ModelError: if the format cannot hold the model.
        """


FORMATS: Registry[ExportFormat] = Registry("export format", __name__, "adapruner.export_formats")
Format = TypeVar("Format", bound=type[ExportFormat])


def register_export_format(kind: Format) -> Format:
    """Makes a class known as an export format, by its ``name``.

    >>> @register_export_format
    ... class Names:
    ...     name = "names"
    ...
    ...     def check(self, target, options):
    ...         pass
    ...
    ...     def write(self, folder, target, options):
    ...         target.write_text("\\n".join(path.name for path in folder.iterdir()))
    ...         return FormatRecord(target, "with the names of the files")
    >>> "names" in FORMATS
    True
    >>> FORMATS.remove("names")

    Raises:
        ConfigurationError: if the name is taken by another format.
    """
    FORMATS.add(kind.name, kind())
    return kind
