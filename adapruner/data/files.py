"""Local files, opened lazily: text in pieces; JSON, CSV and parquet row by row."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from adapruner.errors import DataError

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES, *(f"{s}.gz" for s in (*TEXT_SUFFIXES, *ROW_SUFFIXES[:-1])))

_DAMAGE = (UnicodeDecodeError, EOFError, OSError, zlib.error)

#: A text file is cut at the first blank line after so many characters, or at any line end after twice as many.
PIECE_CHARACTERS = 2000


def list_files(path: Path) -> list[Path]:
    """The file itself, or every readable file below a folder, sorted; hidden files are left out.

    Raises:
        DataError: if nothing is there, the suffix is unknown, or the folder has no readable file.
    """
    known = ", ".join(SUFFIXES)
    if path.is_file():
        if suffix_of(path) not in SUFFIXES:
            raise DataError(f"path: expected one of {known}, got {path.name!r}; convert or rename the file")
        return [path]
    if not path.is_dir():
        raise DataError(f"path: expected a file or a folder, got {str(path)!r}, which does not exist; correct the path")
    files = sorted(f for f in path.rglob("*") if f.is_file() and suffix_of(f) in SUFFIXES)
    files = [f for f in files if not any(part.startswith(".") for part in f.relative_to(path).parts)]
    if not files:
        raise DataError(f"path: expected a folder with files of {known}, got none of them in {str(path)!r}; put text there")
    return files


def suffix_of(file: Path) -> str:
    """The lower-case suffix, with ``.gz`` kept on: ``.jsonl.gz``."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix + (".gz" if name.endswith(".gz") else "")


def is_text(file: Path) -> bool:
    """Whether the file has plain text, no rows with columns."""
    return suffix_of(file).removesuffix(".gz") in TEXT_SUFFIXES


def read_text_pieces(file: Path) -> Iterator[str]:
    """Pieces of about :data:`PIECE_CHARACTERS`, cut at blank lines where there are any; blank pieces are left out.

    Raises:
        DataError: if the file is not UTF-8 or is damaged.
    """
    try:
        with _open(file) as stream:
            yield from in_pieces(stream)
    except _DAMAGE as error:
        raise _damaged(file, error) from None


def in_pieces(text: Iterable[str]) -> Iterator[str]:
    """Pieces of about :data:`PIECE_CHARACTERS` of a text given by its lines, cut at blank lines where there are any.

    >>> list(in_pieces(["one line\\n", "\\n", "another\\n"]))
    ['one line\\n\\nanother']
    """
    lines: list[str] = []
    size = 0
    for line in text:
        lines.append(line)
        size += len(line)
        if size >= (2 if line.strip() else 1) * PIECE_CHARACTERS:
            yield from _piece(lines)
            lines, size = [], 0
    yield from _piece(lines)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl, .json (an array of objects, one object, or an object a line), .csv or .tsv (its first line names the columns) or
    .parquet file.

    Raises:
        DataError: if the file is damaged or a row is no object.
    """
    suffix = suffix_of(file).removesuffix(".gz")
    read = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _table_rows, ".tsv": _table_rows, ".parquet": _parquet_rows}[suffix]
    try:
        for number, row in enumerate(read(file), start=1):
            if not isinstance(row, dict):
                raise DataError(f"path: expected rows that are JSON objects, got {type(row).__name__} in row {number} of {file.name!r}")
            yield row
    except _DAMAGE as error:
        raise _damaged(file, error) from None


def _piece(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip("\n")
    if text.strip():
        yield text


def _jsonl_rows(file: Path) -> Iterator[Any]:
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # a number of 5000 digits is no JSONDecodeError
                raise DataError(
                    f"path: expected one JSON object a line, got {_reason(error)!r} in {file.name!r} line {number}; mend it"
                ) from None
            yield row


def _json_rows(file: Path) -> Iterator[Any]:
    with _open(file) as stream:
        if _is_object(stream.readline()):  # an object a line, as many data sets name so, too, or one alone
            yield from _jsonl_rows(file)
            return
        stream.seek(0)
        try:
            rows = json.load(stream)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise DataError(f"path: expected a JSON array, got {error.msg!r} in {file.name!r} line {error.lineno}; mend it") from None
            rows = None  # an object a line, as many data sets name so, too
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"path: expected a JSON array, got {_reason(error)!r} in {file.name!r}; mend it") from None
    yield from _jsonl_rows(file) if rows is None else rows if isinstance(rows, list) else [rows]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def lone_object(file: Path) -> dict[str, Any] | None:
    """What a .json file holds if that is a single object: one row, or what is said of a data set. ``None`` for everything else."""
    if suffix_of(file).removesuffix(".gz") != ".json":
        return None
    try:
        with _open(file) as stream:
            if stream.read(4096).lstrip()[:1] != "{":
                return None
            stream.seek(0)
            if _is_object(stream.readline()) and stream.read(4096).strip():  # rows: the rest need not be read
                return None
            stream.seek(0)
            found = json.load(stream)
    except (ValueError, RecursionError, *_DAMAGE):  # an object a line, or damage, which whoever reads it names
        return None
    return found if isinstance(found, dict) else None


def _table_rows(file: Path) -> Iterator[Any]:
    separator = "\t" if ".tsv" in suffix_of(file) else ","
    before = csv.field_size_limit(2**31 - 1)  # of the process: the library's 128 Ki characters are fewer than a long document's
    with _open(file, newline="") as stream:
        reader = csv.DictReader(stream, delimiter=separator, strict=True)
        try:
            twice = [name for name, times in Counter(reader.fieldnames or ()).items() if times > 1]
            if twice:
                raise DataError(f"path: expected columns with names of their own, got {twice[0]!r} twice in {file.name!r}; rename one")
            for row in reader:
                if None in row or None in row.values():
                    got = f"{len(row[None]) + len(row) - 1 if None in row else sum(v is not None for v in row.values())}"
                    raise DataError(
                        f"path: expected {len(reader.fieldnames or [])} columns in every row, as the first line of {file.name!r} has them, "
                        f"got {got} in line {reader.line_num}; put quotes around text that holds the separator or line breaks"
                    )
                yield row
        except csv.Error as error:
            raise DataError(
                f"path: expected a table as spreadsheets write it, got {str(error)!r} in {file.name!r} after line {reader.line_num}; "
                "mend it"
            ) from None
        finally:
            csv.field_size_limit(before)


def _parquet_rows(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise _damaged(file, error) from None


def _open(file: Path, newline: str | None = None) -> IO[str]:
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", newline=newline)
    return file.open(encoding="utf-8-sig", newline=newline)


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"path: expected a readable UTF-8 or parquet file, got {error} in {file.name!r}; restore or convert the file")
