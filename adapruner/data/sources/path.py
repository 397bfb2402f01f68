"""A local file, a folder of files, or a folder that ``datasets`` wrote by ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapruner.data.data_folder import ChosenFiles, choose_files, names_of, say_once, split_name
from adapruner.data.documents import Document, needed_columns, row_documents
from adapruner.data.files import PIECE_CHARACTERS, is_text, list_files, lone_object, read_rows, read_text_pieces
from adapruner.data.text_source import SOURCE_KINDS, SourceKind
from adapruner.errors import DataError


@SOURCE_KINDS.register("path")
class FileSource(SourceKind):
    """Text files give pieces cut at blank lines, files with rows one document a row."""

    fields = ("split", "column", "instruction", "chat")

    @property
    def _root(self) -> Path:
        return Path(str(self.source.path)).expanduser()

    @property
    def piece(self) -> int:
        """Of text files: they are cut."""
        return 0 if is_saved_to_disk(self._root) or not any(map(is_text, self._files().read)) else 2 * PIECE_CHARACTERS

    def check(self) -> None:
        """Missing files, unknown suffixes, splits that are not there, and text files where a column is named.

        Raises:
            DataError: naming what is wrong.
        """
        source = self.source
        if source.split != "train" and self._root.is_file():
            raise DataError(
                f"source {source.name!r}: expected no split with a file, got {source.split!r}; leave it out and choose documents with part"
            )
        if is_saved_to_disk(self._root):
            return
        try:
            files = self._files().read
        except DataError as error:
            raise DataError(f"source {source.name!r}: {error}") from None
        without = next((f.name for f in files if is_text(f)), None)
        option = "instruction" if source.instruction else "chat" if source.chat else f"column {source.column!r}"
        if without and option != "column 'text'":
            raise DataError(f"source {source.name!r}: expected files with columns for {option}, got {without!r}; give .jsonl or .parquet")

    def read(self) -> Iterator[Document]:
        """Files in the order of their names.

        Raises:
            DataError: if a file is damaged, or a row lacks its column.
        """
        source, root = self.source, self._root
        if is_saved_to_disk(root):
            rows, label = saved_rows(root, source.split, source.name)
            yield from row_documents(source.name, label, rows, source.column, source.instruction, source.chat)
            return
        files = self._files()
        if root.is_dir():
            of = f" of the split {files.split}" if files.split else ""
            out = f"; left out: {names_of(files.left_out, root)}" if files.left_out else ""
            say_once(f"source {source.name!r}: reads {names_of(files.read, root)}{of} in {root}{out}")
        for file in files.read:
            label = file.name if file == root else file.relative_to(root).as_posix()
            if is_text(file):
                yield from (Document(source.name, f"{label}#{i}", text) for i, text in enumerate(read_text_pieces(file)))
            else:
                yield from row_documents(source.name, label, read_rows(file), source.column, source.instruction, source.chat)

    def _files(self) -> ChosenFiles:
        """Beside other files a .json that is one object without the columns, a package.json say, is no text: left out, which is said."""
        files = list_files(self._root)
        if self._root.is_file():
            return ChosenFiles(files, [], None)
        chosen, source = choose_files(self._root, files, self.source.split), self.source
        needed = needed_columns(source.column, source.instruction, source.chat)
        others = [file for file in chosen.read if (found := lone_object(file)) is not None and not set(needed) <= set(found)]
        if not others or len(others) == len(chosen.read):
            return chosen
        return ChosenFiles([file for file in chosen.read if file not in others], [*chosen.left_out, *others], chosen.split)


def is_saved_to_disk(folder: Path) -> bool:
    """Whether ``datasets`` wrote the folder by ``save_to_disk``: a data set, or several splits of one."""
    return (folder / "dataset_dict.json").is_file() or ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file())


def saved_rows(folder: Path, split: str, name: str) -> tuple[Iterator[Any], str]:
    """Rows of one split of a ``save_to_disk`` folder, from disk as they are asked for, and what to call them.

    Args:
        name: of the source, for messages.

    Raises:
        DataError: if the folder is damaged, or has no such split.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow, json and datasets each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"source {name!r}: expected a folder of save_to_disk, got {reason} in {str(folder)!r}; write it again") from None
    if isinstance(found, datasets.DatasetDict):
        names = {split_name(str(key)): key for key in found}
        key = names.get(split_name(split), next(iter(found)) if len(found) == 1 and split == "train" else None)
        if key is None:
            raise DataError(
                f"source {name!r}: expected the split {split!r} in {str(folder)!r}, got {', '.join(map(str, found))}; name one of them"
            )
        others = ", ".join(str(other) for other in found if other != key)
        say_once(f"source {name!r}: reads the split {key} of {folder}{f'; left out: {others}' if others else ''}")
        return iter(found[key]), str(key)
    if split != "train" and str(found.split) != split:
        raise DataError(f"source {name!r}: expected the split {split!r} in {str(folder)!r}, got {found.split}; leave split out")
    return iter(found), folder.name
