"""Digests of content: whether a file is, to the last bit, what was written. They find damage, not malice: anyone can make a digest.

A JSON object carries its own under ``digest``, a Torch file in the comment at its end, a folder in ``SHA256SUMS``, which
``sha256sum -c`` reads, too. Files are read in pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

KEY = "digest"
SUMS = "SHA256SUMS"
_PIECE = 1 << 20
_COMMENT = b"adapruner sha256 "
#: Of a folder, what people rewrite as they like: listed, but nobody's reason to refuse it.
FREE = ("README.md",)


class DamagedError(ValueError):
    """Content that is not what was written."""


def digest_of(record: Any) -> str:
    """32 hex digits over JSON types, whatever the order of their keys.

    >>> digest_of({"a": 1, "b": [2.5]}) == digest_of({"b": [2.5], "a": 1}) != digest_of({"a": 1, "b": [2.25]})
    True
    """
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its digest.

    >>> opened(sealed({"value": 1.5}))
    {'value': 1.5}
    """
    content = {key: value for key, value in record.items() if key != KEY}
    return {**content, KEY: digest_of(content)}


def opened(record: Any, *, may_lack: bool = False) -> dict[str, Any]:
    """A sealed object without its digest.

    Args:
        may_lack: whether an object without a digest, of an earlier release, passes.

    Raises:
        DamagedError: if the digest is missing or of other content.
    """
    if not isinstance(record, Mapping):
        raise DamagedError(f"expected a JSON object, got {type(record).__name__}")
    content = {key: value for key, value in record.items() if key != KEY}
    if KEY not in record:
        if not may_lack:
            raise DamagedError("no digest")
    elif record[KEY] != digest_of(content):
        raise DamagedError("its digest is of other content")
    return content


def seal_lines(text: str, note: str) -> str:
    """Lines of a file that knows ``#`` comments, with a digest of them in one more: ``# note: ...``."""
    return f"{text}# {note}: {hashlib.sha256(text.encode()).hexdigest()[:32]}\n"


def lines_are_sealed(text: str, note: str) -> bool:
    """Whether a text is what :func:`seal_lines` made.

    >>> lines_are_sealed(seal_lines("seed: 1\\n", "digest"), "digest"), lines_are_sealed("seed: 2\\n", "digest")
    (True, False)
    """
    return text == seal_lines(text[: text.rstrip("\n").rfind("\n") + 1], note)


def digest_file(file: Path, end: int | None = None) -> str:
    """64 hex digits of SHA-256 over a file, or over its bytes before ``end``."""
    digest, left = hashlib.sha256(), file.stat().st_size if end is None else end
    with file.open("rb") as stream:
        while left > 0 and (piece := stream.read(min(_PIECE, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def seal_zip(file: Path) -> None:
    """Puts a digest of a zip file, which is what ``torch.save`` writes, into its comment."""
    end = file.stat().st_size - 2  # the last two bytes say how long the comment is: not at all
    comment = _COMMENT + digest_file(file, end).encode()
    with file.open("r+b") as stream:
        stream.seek(end)
        stream.write(len(comment).to_bytes(2, "little") + comment)


def check_zip(file: Path, *, ours: bool = False) -> None:
    """Whether a Torch file is whole: by our digest, and where it was written by others by the CRC-32 of each of its records.

    Args:
        ours: whether one without our digest is refused.

    Raises:
        DamagedError: if it is not.
    """
    import zipfile

    length = len(_COMMENT) + 64
    end = file.stat().st_size - length - 2
    with file.open("rb") as stream:
        stream.seek(max(0, end))
        tail = stream.read()
    if tail[2 : 2 + len(_COMMENT)] == _COMMENT:
        if tail[:2] != length.to_bytes(2, "little") or digest_file(file, end) != tail[2 + len(_COMMENT) :].decode(errors="replace"):
            raise DamagedError("its digest is of other content")
        return
    if ours:
        raise DamagedError("no digest")
    try:
        with zipfile.ZipFile(file) as records:
            bad = records.testzip()
    except Exception as error:  # whatever a damaged zip makes of its readers
        raise DamagedError(" ".join(str(error).split()) or type(error).__name__) from None
    if bad is not None:
        raise DamagedError(f"the record {bad} is of other content")


def write_sums(folder: Path) -> None:
    """Lists the SHA-256 of every file inside, for ``sha256sum -c SHA256SUMS`` and :func:`check_sums`."""
    names = sorted(str(file.relative_to(folder)) for file in _files(folder))
    lines = [f"{digest_file(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path, only: Callable[[Path], bool] | None = None, *, ours: bool = False) -> list[str]:
    """Whether the files of a folder are those of its ``SHA256SUMS``; one without passes, since others write folders, too.

    Args:
        only: which of the listed files to read, by their path; ``None``: all.
        ours: whether a folder without the list is refused.

    Returns:
        Names of files that were rewritten and may be (a model card).

    Raises:
        DamagedError: naming the first file that is missing or other than listed.
    """
    sums = folder / SUMS
    if not os.path.lexists(sums):
        if ours:
            raise DamagedError(f"no {SUMS}")
        return []
    changed = []
    for name, listed in _listed(sums).items():
        file = folder / name
        if only is not None and not only(file):
            continue
        found = digest_file(file) if file.is_file() else None
        if found != listed and name not in FREE:
            raise DamagedError(f"{name} is {'not there' if found is None else 'not what was written'}, by {SUMS}")
        if found != listed:
            changed.append(name)
    return changed


def _listed(sums: Path) -> dict[str, str]:
    """Name -> SHA-256.

    Raises:
        DamagedError: if the list is damaged.
    """
    try:
        rows = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DamagedError(f"{SUMS} cannot be read ({error})") from None
    sound = bool(rows) and all(len(row) == 2 and len(row[0]) == 64 and not Path(row[1]).is_absolute() for row in rows)
    if not sound or any(".." in Path(name).parts for _, name in rows):
        raise DamagedError(f"{SUMS} is damaged")
    return {name: digest for digest, name in rows}


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)
