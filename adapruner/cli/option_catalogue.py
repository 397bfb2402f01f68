"""The options of ``fit``, ``validate``, ``test`` and ``predict``, as the parser has them, without the parser.

Building the parser imports torch, lightning and transformers, which takes many seconds. A misspelt option and ``--help`` need names and
texts alone: these lie in ``options.json``, which ``python -m tests.cli.write_option_catalogue`` writes from the parser itself and a test
compares with it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from adapruner.errors import nearest

FILE = Path(__file__).with_name("options.json")
#: Options that name a folder to be written.
FOLDERS = ("trainer.default_root_dir", "pruning.folder", "report.folder", "export.folder")
_CONFIG = ("c", "config")


@dataclass(frozen=True)
class Option:
    """One option."""

    type: str
    """In words: ``text``, ``a whole number or null``."""
    default: str
    """As YAML; empty where one has to be given."""
    text: str
    """What it sets, from its docstring."""
    kind: str = ""
    """The class whose fields are options below it: ``ReconstructionConfig`` of ``pruning.reconstruction``, which has ``.ridge``."""
    open: bool = False
    """Whether names below it are not all known here: it holds an object of any class, or a mapping."""
    known: Sequence[str] = ()
    """The names that its value, the items of its value or their keys can be, where there are so many and no more."""
    group: str = ""
    """Entry points that add to these."""


def nearest_option(name: str, options: Sequence[str], groups: Iterable[str]) -> str | None:
    """The option or group that was probably meant: as a whole, or by its last word, where the groups before it were left out.

    >>> nearest_option("n_trails", ["search.n_trials", "search.seed"], ["search"])
    'search.n_trials'
    """
    close = difflib.get_close_matches(name, [*options, *groups], n=1, cutoff=0.7)
    last = {known.split(".")[-1]: known for known in reversed(options)}
    words = [] if close else difflib.get_close_matches(name.split(".")[-1], last, n=1, cutoff=0.8)
    return next(iter([*close, *(last[word] for word in words)]), None)


@dataclass(frozen=True)
class Catalogue:
    """All options of a command."""

    command: str
    options: Mapping[str, Option]
    lightning: str
    """The release of Lightning whose Trainer's options these are."""

    @cached_property
    def groups(self) -> frozenset[str]:
        """Names that only have options below them."""
        parts = [name.split(".") for name in self.options]
        heads = {".".join(words[:length]) for words in parts for length in range(1, len(words))}
        return frozenset(heads - set(self.options))

    def misspelt(self, words: Sequence[str]) -> list[str]:
        """One line for each option of a command line, or of a configuration that it names, that there is not.

        What cannot be read here says nothing: the parser, which comes after, has a reason for it.

        >>> catalogue = Catalogue("fit", {"model.dtype": Option("text", "auto", "")}, "2.6")
        >>> catalogue.misspelt(["--model.dtyp", "float32"])
        ['model.dtyp: expected an option of fit, got an unknown one; did you mean model.dtype?']
        """
        try:
            return list(dict.fromkeys(line for name, _ in self._given(words) for line in self._judge(name)))
        except _UnreadableError:
            return []

    def unknown(self, words: Sequence[str]) -> list[str]:
        """One line for each value that is none of the names that its option knows: a metric, a sampler and the like.

        >>> catalogue = Catalogue("fit", {"sampler": Option("text", "tpe", "", known=["gp", "tpe"])}, "2.6")
        >>> catalogue.unknown(["--sampler", "tpee"])
        ["sampler: expected a known sampler, got 'tpee'; did you mean 'tpe'? Known: gp, tpe"]
        """
        try:
            last = dict(self._given(words))  # the parser takes the last of several, too
            given = [(self.options[name], name, value) for name, value in last.items() if name in self.options]
        except _UnreadableError:
            return []
        judged = [(option, name, value) for option, name, value in given if option.known and not _has_more(option.group)]
        return list(
            dict.fromkeys(_fault(name, one, option.known) for option, name, value in judged for one in _strangers(value, option.known))
        )

    def value(self, words: Sequence[str], name: str) -> Any:
        """The last value of an option; ``None`` where it has none here."""
        try:
            return dict(self._given(words)).get(name)
        except _UnreadableError:
            return None

    def names_given(self, words: Sequence[str]) -> set[str]:
        """Names of the options that a command line or a configuration of it gives; none where they cannot be read here."""
        try:
            return {name for name, _ in self._given(words)} & {*self.options}
        except _UnreadableError:
            return set()

    def given(self, words: Sequence[str]) -> list[tuple[str, Any]] | None:
        """Every option with its value, as YAML reads it, in their order; ``None`` where only the parser can say what they are.

        >>> catalogue = Catalogue("fit", {"model.dtype": Option("text", "auto", ""), "seed": Option("a whole number", "0", "")}, "2.6")
        >>> catalogue.given(["--config={model: {dtype: float32}}", "--seed", "3"])
        [('model.dtype', 'float32'), ('seed', 3)]
        """
        try:
            pairs = list(self._given(words))
        except _UnreadableError:
            return None
        grouped = self.groups | {name for name, option in self.options.items() if option.kind}  # their parts follow
        return [(name, _plainly(value)) for name, value in pairs if not (name in grouped and isinstance(value, Mapping))]

    def nearest(self, name: str, below: str = "") -> str:
        """The option that was probably meant, or where they all are."""
        close = nearest_option(name, *([one for one in names if one.startswith(below)] for names in (self.options, self.groups)))
        return f"did you mean {close}?" if close else f"see adapruner {self.command} --help"

    def _judge(self, name: str) -> Iterator[str]:
        if name in self.options or name in self.groups or (name.startswith("trainer.") and not self._same_lightning):
            return
        owner = max((known for known in self.options if name.startswith(f"{known}.")), key=len, default="")
        option = self.options.get(owner)
        if option is None:
            yield f"{name}: expected an option of {self.command}, got an unknown one; {self.nearest(name)}"
        elif option.kind and not option.open and not {"class_path", "init_args"} & set(name.split(".")):
            yield f"{name}: expected an option of {option.kind}, got an unknown one; {self.nearest(name, f'{owner}.')}"

    @cached_property
    def _same_lightning(self) -> bool:
        try:
            return version("lightning") == self.lightning
        except PackageNotFoundError:
            return False

    def _given(self, words: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Name and value of each option: as text, or as YAML says; without a value ``None``."""
        left = list(words)
        while left:
            option, separator, value = left.pop(0).partition("=")
            if option in ("-h", "--help", "--print_config") or option.endswith(".help"):
                continue
            if not option.startswith("-"):
                raise _UnreadableError
            name = option.lstrip("-").removesuffix("+")
            if not separator:
                if not left or left[0].startswith("--"):
                    yield name, None  # a wrong name is said first
                    continue
                value = left.pop(0)
            yield from self._of(name, value)

    def _of(self, name: str, value: str) -> Iterator[tuple[str, Any]]:
        if name in _CONFIG:
            yield from self._flat(_mapping(value), "")
        elif name in self.groups or (name in self.options and self.options[name].kind and "{" in value):
            yield from self._flat(_mapping(value), f"{name}.")
        else:
            yield name, value

    def _flat(self, record: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(record, Mapping) or "class_path" in record:
            return
        for key, value in record.items():
            name = f"{prefix}{key}".removesuffix("+")
            yield name, value
            if name in self.groups or (name in self.options and self.options[name].kind):
                yield from self._flat(value, f"{name}.")


class _UnreadableError(Exception):
    """Not for here."""


def _plainly(value: Any) -> Any:
    """A word of the command line as YAML has it; what is no YAML as it is."""
    if not isinstance(value, str):
        return value
    try:
        return _yaml(value)
    except _UnreadableError:
        return value


def _strangers(value: Any, known: Sequence[str]) -> list[str]:
    """The names in a value that are not known; what is no name is for the parser to judge."""
    if isinstance(value, str):
        try:
            value = _yaml(value)
        except _UnreadableError:
            return []
    items = [value] if isinstance(value, str) else list(value) if isinstance(value, list | Mapping) else []
    return [item for item in items if isinstance(item, str) and item not in (*known, "null")]


def _fault(name: str, got: str, known: Sequence[str]) -> str:
    what = "metric" if name.endswith((".compare", ".coefficients")) else name.rpartition(".")[2]
    return f"{name}: expected a known {what.removesuffix('s')}, got {got!r}; {nearest(got, known)}"


def _has_more(group: str) -> bool:
    """Whether another package adds names of its own, which only its import would tell."""
    return bool(group) and bool(entry_points(group=group))


def _mapping(text: str) -> Any:
    """A file of options, or YAML itself."""
    from adapruner.files.yaml_text import YAMLRefused, read_yaml_text

    try:
        return _yaml(read_yaml_text(Path(text)) if "{" not in text and "\n" not in text and text and Path(text).exists() else text)
    except (OSError, ValueError, YAMLRefused):
        raise _UnreadableError from None


def _yaml(text: str) -> Any:
    import yaml

    from adapruner.files.yaml_text import YAMLRefused, check_yaml

    try:
        check_yaml(text)
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (ValueError, yaml.YAMLError, YAMLRefused):
        raise _UnreadableError from None


@cache
def read_catalogue(command: str) -> Catalogue:
    """The catalogue of ``fit``, ``validate``, ``test`` or ``predict``."""
    record = json.loads(FILE.read_text(encoding="utf-8"))
    options = {name: Option(**record["options"][name]) for name in record["commands"][command]}
    return Catalogue(command, options, record["lightning"])


def catalogue_text(commands: Mapping[str, Mapping[str, Option]], lightning: str) -> str:
    """The content of ``options.json``."""
    options = {name: _as_record(option) for of_command in commands.values() for name, option in of_command.items()}
    record = {"lightning": lightning, "commands": {name: list(found) for name, found in commands.items()}, "options": options}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def _as_record(option: Option) -> dict[str, Any]:
    return {name: value for name, value in asdict(option).items() if value or name not in ("known", "group")}
