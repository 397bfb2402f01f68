"""A file of rows ``{"text": ...}`` that grows by whole batches, and can be gone on with after a kill at any moment.

Beside it lies a hidden record of what it depends on and of the two contents that it may have: the last one and the next. It is written
before the file is, so that whatever ends the process, the file is one of the two; any other was changed by somebody else, and is left
alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapruner.argument_checks import got
from adapruner.errors import ConfigurationError
from adapruner.files.atomic import clear_leftovers, replacing
from adapruner.files.digests import opened, sealed
from adapruner.files.folder_lock import FolderLock, no_empty_folders
from adapruner.files.paths import check_folder_path, check_path

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class State:
    """A content of the file."""

    batches: int = 0
    """That it has in whole."""
    whole: int = 0
    """Bytes of these; the rest is the beginning of one more."""
    size: int = 0
    """Bytes in all."""
    sha256: str = hashlib.sha256().hexdigest()

    @classmethod
    def of(cls, batches: int, whole: int, content: bytes) -> State:
        """That of a content."""
        return cls(batches, whole, len(content), hashlib.sha256(content).hexdigest())

    def is_of(self, content: bytes) -> bool:
        """Whether it is this content's."""
        return (self.size, self.sha256) == (len(content), hashlib.sha256(content).hexdigest())


class RowsFile:
    """The file, at work inside :meth:`held`.

    Args:
        file: its name ends with ``.jsonl``.

    Raises:
        ConfigurationError: if there can be no such file.
    """

    def __init__(self, file: str | Path) -> None:
        check_path("out", file)  # before a path is made of it, which would mend a URL
        file = Path(file)
        if file.suffix != SUFFIX:
            raise ConfigurationError(f"out: expected a file name that ends with {SUFFIX}, got {got(file.name)}; give {file.stem}{SUFFIX}")
        if file.is_dir() or (file.is_symlink() and not file.exists()):
            what = "a folder" if file.is_dir() else "a link that leads nowhere"
            raise ConfigurationError(f"out: expected a file, got {what}, {file}; choose another name")
        check_folder_path("out", file.parent)
        self.file, self.record = file, file.with_name(f".{file.name}.adapruner.json")
        self.state, self.content = State(), b""

    @property
    def rows(self) -> int:
        """Documents that it has."""
        return self.content.count(b"\n")

    def read(self, identity: Mapping[str, Any], documents: int) -> None:
        """Reads what is there, and whether it can be gone on with.

        Args:
            identity: what rows depend on, or a part of it that is known by now.
            documents: how many it is to have.

        Raises:
            ConfigurationError: if it is another's, was changed, was begun with something else, or has more documents.
        """
        self.state, self.content = State(), b""
        if not self.file.exists():
            return
        if not self.record.exists():
            raise ConfigurationError(f"out: expected a new file, or one that write-texts began, got {self.file}; choose another name")
        record = self._record()
        for name, value in identity.items():
            was = record["identity"].get(name)
            if was != value:
                said = f"{got(was)} as in {self.file}, got {got(value)}" if name not in ("model", "tokenizer") else ""
                said = said or f"the one that began {self.file}, got another"
                raise ConfigurationError(f"{name}: expected {said}; give that, or choose another --out")
        content = self.file.read_bytes()
        state = next((found for found in record["states"] if found.is_of(content)), None)
        if state is None:
            raise ConfigurationError(f"out: expected {self.file} as write-texts left it, got other content; choose another name")
        self.state, self.content = state, content
        if self.rows > documents:
            raise ConfigurationError(
                f"documents: expected {self.rows} or more, which {self.file} has, got {documents}; give more, or choose another --out"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """For this process alone inside the block; its folder is made.

        Raises:
            ConfigurationError: if another process is at work on it, or the folder cannot be written.
        """
        with no_empty_folders(self.file.parent):
            lock = self._locked()
            try:
                for name in (self.file.name, self.record.name):
                    clear_leftovers(self.file.parent, name)
                yield
            finally:
                lock.release()

    def _locked(self) -> FolderLock:
        lock = FolderLock(f".{self.file.name}.lock")  # of its own: beside it others may be at work
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lock.take(self.file.parent)
        except (OSError, ConfigurationError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            if isinstance(reason, OSError):
                got_it = f"a folder that can be written, got {self.file.parent} ({reason.strerror}); choose another"
            else:
                got_it = f"no other process at work on {self.file}, got one; wait for it, end it, or choose another name"
            raise ConfigurationError(f"out: expected {got_it}") from None
        return lock

    def put(self, identity: Mapping[str, Any], number: int, texts: Sequence[str], documents: int) -> None:
        """The next batch, behind the whole ones that are there; of the last one as many as are asked for.

        Args:
            number: of the batch, from 0.
            documents: how many the file is to have.

        Raises:
            ConfigurationError: if there is no room, or no right to write.
        """
        before = self.content[: self.state.whole]
        added = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)
        content, left = before + added, documents - before.count(b"\n")
        whole = len(texts) <= left
        if not whole:
            content = b"".join(content.splitlines(keepends=True)[:documents])
        state = State.of(number + whole, len(content) if whole else len(before), content)
        record = sealed({"identity": dict(identity), "states": [asdict(self.state), asdict(state)]})
        for path, new in ((self.record, json.dumps(record, indent=1).encode()), (self.file, content)):
            with replacing(path, len(new), argument="out") as temporary:
                temporary.write_bytes(new)
        self.state, self.content = state, content

    def _record(self) -> dict[str, Any]:
        try:
            record = opened(json.loads(self.record.read_text(encoding="utf-8")))
            return {"identity": dict(record["identity"]), "states": [State(**state) for state in record["states"]]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"out: expected the record of {self.file} in {self.record.name}, got damage ({reason:.80}); choose another name"
            ) from None
