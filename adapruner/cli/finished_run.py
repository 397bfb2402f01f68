"""A finished run that is called again by the very same command says so at once, and does nothing.

A run that comes to its end leaves ``finished.json``: the options that it was given, and size and time of change of every file that it
read and that it left, as ``make`` looks at files. Where all of it is as it was, there is nothing to do, which is known without torch.
Whatever is other than then, the run goes on as one that was killed would: trials, plan and weights are there, and what was not asked for
then is done. A name on the hub is taken at its word.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapruner._version import __version__
from adapruner.cli.option_catalogue import read_catalogue
from adapruner.cli.shipped_configs import find_configs
from adapruner.distributed import is_launched, is_rank_zero
from adapruner.errors import AdaPrunerError
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import DamagedError, opened, sealed
from adapruner.files.folder_lock import FILE as LOCK
from adapruner.models.model_names import PACKAGE, file_of_package
from adapruner.progress import RUN_LOG, announce
from adapruner.stage_times import FILE as STAGES

FILE = "finished.json"
MEASURED = "report_measurements.json"
_ROOT = "trainer.default_root_dir"
#: Options that name places to write to.
_PLACES = (_ROOT, "pruning.folder", "report.folder", "export.folder", "export.gguf")
#: What is written whenever a run is called, and says nothing of its end.
_PASSING = (FILE, LOCK, RUN_LOG, STAGES)
#: Options by which a run that came to an end has more to do when it is called again.
_NEVER_DONE = ("trainer.max_time", "trainer.fast_dev_run")
#: Where it is set, the parser takes options from the environment.
_BY_ENVIRONMENT = "JSONARGPARSE_DEFAULT_ENV"
#: What a run's results come from, in the package itself: code, templates of pages, tables.
_OWN_FILES = (".py", ".html", ".jinja", ".json")
_PACKAGE = Path(__file__).parents[1]
#: Above so many files it is not worth a look.
_MOST_FILES = 20_000
Files = dict[str, list[int]]


class _UnknownError(Exception):
    """It cannot be told what a run reads."""


@dataclass(frozen=True)
class AskedRun:
    """What one command line of ``fit`` asks for."""

    command: str
    """``fit`` or ``prune``, as the user wrote it."""
    folder: Path
    options: list[list[Any]]
    """Name and value, in the order in which they were given: JSON types."""
    inputs: Files
    """Absolute path of every file that is read -> bytes, and nanoseconds of its last change."""
    code: list[int]
    """Files of adapruner itself, their bytes, and when the newest was changed: in a checkout its version tells too little."""

    @classmethod
    def of(cls, command: str, words: Sequence[str], imports: Sequence[str]) -> AskedRun | None:
        """What the words behind ``fit`` ask for; ``None`` where that is not known before the parser, or is never done.

        Args:
            command: as the user wrote it.
            words: without ``--import``.
            imports: the files and modules of ``--import``; where there are any, it is not known what they read.
        """
        try:
            options = read_catalogue("fit").given(find_configs(list(words)))
        except AdaPrunerError:  # which the parser says in its turn
            return None
        asks_for_work = options is not None and not any(word.startswith("--print_config") for word in words)
        # What an import reads is anybody's guess, and options that the environment gives do not stand among the words.
        unseen = bool(imports) or bool(os.environ.get(_BY_ENVIRONMENT))
        if options is None or not asks_for_work or unseen or is_launched():
            return None
        last = dict(options)
        if last.get("checkpoint.resume") is False or any(last.get(name) for name in _NEVER_DONE):
            return None
        folder = Path(str(last.get(_ROOT) or "."))
        if folder.resolve() == Path.cwd().resolve():  # where everything that the user has lies beside the run's own files
            return None
        named = [value for name, value in options if name not in _PLACES]
        try:
            inputs = _looks(_inside(named, folder))
        except (_UnknownError, OSError, AdaPrunerError):
            return None
        return cls(command, folder, json.loads(json.dumps(options, default=str)), inputs, _code())

    def is_finished(self) -> bool:
        """Whether a run that came to its end did all of it; says so, or what is other than then."""
        record = self._read()
        if record is None or (self.folder / LOCK).exists():
            return False
        change = self._change(record)
        if change is not None:
            announce(f"{self.folder}: its run is finished, and goes on all the same, since {change}")
            return False
        self._say()
        return True

    def note(self) -> None:
        """Leaves ``finished.json`` behind a run that came to its end; of several processes the first one's."""
        if not is_rank_zero() or not self.folder.is_dir():
            return
        with suppress(OSError, AdaPrunerError, _UnknownError):  # it costs the next call its short cut, no more
            asked = {"version": __version__, "code": self.code, "options": self.options, "inputs": self.inputs}
            record = {**asked, "files": self._left(), "ended": time.time()}
            write_atomically(self.folder / FILE, json.dumps(sealed(record), indent=1) + "\n")

    def _read(self) -> dict[str, Any] | None:
        try:
            return opened(json.loads((self.folder / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, DamagedError):
            announce(f"{self.folder / FILE} is damaged: the run goes on")
            return None

    def _change(self, record: Mapping[str, Any]) -> str | None:
        """What is other than at its end, in words; ``None``: nothing."""
        if record.get("version") != __version__:
            return f"adapruner {record.get('version')} made it, and this is {__version__}"
        if record.get("code") != self.code:
            return "adapruner's own code is not as it was"
        if record.get("options") != self.options:
            return _other_options(record.get("options"), self.options)
        if record.get("inputs") != self.inputs:
            return f"{_other_file(record.get('inputs'), self.inputs)} is not as it was"
        left: Any = record.get("files")
        now = self._left(left if isinstance(left, Mapping) else {})
        return None if now == left else f"{_other_file(left, now)} is not as the run left it"

    def _left(self, names: Iterable[str] | None = None) -> Files:
        """Look of the files that the run left, or of those ``names``; what came since is nobody's concern."""
        if names is not None:
            return _looks(path for path in map(Path, names) if path.is_file())
        written = dict(map(tuple, self.options))  # type: ignore[arg-type]
        places = [self.folder, *(Path(str(written[name])) for name in _PLACES[1:] if written.get(name))]
        return _looks(file for place in places for file in _files(place) if not _passes(file, self.folder))

    def _say(self) -> None:
        given = dict(map(tuple, self.options))  # type: ignore[arg-type]
        model = Path(str(given.get("export.folder") or self.folder / "model"))
        report = Path(str(given.get("report.folder") or self.folder)) / "report.html"
        there = [f"{what}: {path}" for what, path in (("model", model), ("report", report)) if path.exists()]
        measured = self.folder / MEASURED
        again = measured if measured.is_file() else self.folder / FILE
        other = "--out" if self.command == "prune" else f"--{_ROOT}"
        announce(f"{self.folder}: this run is finished, nothing has changed since, and nothing is done again")
        announce("; ".join([*there, f"in short: adapruner inspect {self.folder}"]))
        announce(f"to measure and export again, delete {again}; to begin again, delete the folder, or give another by {other}")


def _inside(value: Any, folder: Path) -> Iterator[Path]:
    """Every file that a value names, itself or by a folder, wherever it stands in it; those in the run folder are the run's own.

    Raises:
        _UnknownError: if a folder has the run folder in it, and so changes by itself.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _inside(item, folder)
    if not isinstance(value, str) or not value:
        return
    path = Path(file_of_package(value) if value.startswith(PACKAGE) else value)
    try:
        there, run = path.resolve(), folder.resolve()
        if not there.exists() or there == run or there.is_relative_to(run):
            return
    except (OSError, ValueError):  # no path
        return
    if run.is_relative_to(there):
        raise _UnknownError
    yield from _files(there)


def _files(place: Path) -> Iterator[Path]:
    """Of a folder, behind links too; what Python makes of its modules, and links that lead nowhere, left out."""
    if not place.is_dir():
        return iter([place])
    found = (Path(top, name) for top, _, names in os.walk(place, followlinks=True) for name in names if not name.endswith(".pyc"))
    return (file for file in found if file.exists())


def _passes(file: Path, folder: Path) -> bool:
    """Whether a file of the run folder is written whenever a run is called."""
    parts = file.relative_to(folder).parts if file.is_relative_to(folder) else ()
    return bool(parts) and (parts[0] in (*_PASSING, "logs") or parts[-1].startswith(".adapruner-"))


def _looks(files: Iterable[Path]) -> Files:
    """Absolute path -> size and time of change."""
    found: Files = {}
    for file in files:
        look = file.stat()
        found[str(file.absolute())] = [look.st_size, look.st_mtime_ns]
        if len(found) > _MOST_FILES:
            raise _UnknownError
    return found


def _code() -> list[int]:
    looks = list(_looks(file for file in _files(_PACKAGE) if file.suffix in _OWN_FILES).values())
    return [len(looks), sum(size for size, _ in looks), max(changed for _, changed in looks)]


def _other_options(then: Any, now: list[list[Any]]) -> str:
    values: list[dict[str, list[Any]]] = [{}, {}]
    for found, pairs in zip(values, (then if isinstance(then, list) else [], now), strict=True):
        for name, value in pairs:
            found.setdefault(name, []).append(value)
    names = sorted(name for name in {*values[0], *values[1]} if values[0].get(name) != values[1].get(name))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'} not as then" if names else "its options stand in another order"


def _other_file(then: Any, now: Files) -> str:
    before: dict[str, Any] = then if isinstance(then, dict) else {}
    name = next(name for name in [*before, *now] if before.get(name) != now.get(name))
    return os.path.relpath(name) if Path(name).is_relative_to(Path.cwd()) else name
