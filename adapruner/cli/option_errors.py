"""What is wrong with the options of a command, one line for each: found from the parser's options and their types.

jsonargparse says what it does not accept in prose of up to a hundred lines, and of one option at a time. Where it raises
an error, each option that was given on the command line or in a configuration is therefore judged again, by its name and its type alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, get_loader

from adapruner.cli.class_paths import classes_in, find_class, parser_of
from adapruner.cli.option_catalogue import nearest_option
from adapruner.errors import AdaPrunerError, ConfigurationError, nearest, together
from adapruner.files.yaml_text import YAMLRefused, check_yaml, read_yaml_text

_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_WORDS |= {list: "a list", Sequence: "a list", dict: "a mapping", Mapping: "a mapping"}
_NONE_GIVEN = "expected a value, got none"


class Text(str):
    """A value of the command line, not yet read as YAML."""


class Options:
    """Options by name: of a command, or of an object that is the value of one option.

    Args:
        parser: that has them. Its messages are not read; the types of its options are, which it keeps in a private attribute.
        owner: whose they are, in words.
        prefix: what stands before their names.
        help: where to read on.
        nullable: groups that ``null`` leaves out.
    """

    def __init__(self, parser: ArgumentParser, owner: str, prefix: str, help: str, nullable: Collection[str] = ()) -> None:
        self.owner, self.prefix, self.help, self.nullable = owner, prefix, help, nullable
        actions = [action for action in parser._actions if not action.dest.endswith(".help")]
        self.types = {action.dest: action._typehint for action in actions if hasattr(action, "_typehint")}
        self.required = [action.dest for action in actions if action.required]
        parts = [name.split(".") for name in self.types]
        self.groups = {".".join(words[:length]) for words in parts for length in range(1, len(words))}

    # -------------------------------------------------------------------------------------------- reading
    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """The value of each option of a command line, those in its configurations included: the last one, in the order of the last.

        Raises:
            ConfigurationError: if an option has no value, or a configuration cannot be read.
        """
        given: dict[str, Any] = {}
        for name, value in self._pairs(words):
            given.pop(name, None)
            given[name] = value
        return given

    def _pairs(self, words: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for _, name, text in self._split(words):
            yield from self._given_by(name, text)

    def _split(self, words: Sequence[str]) -> Iterator[tuple[list[str], str, str]]:
        """Option by option: its words, its name without dashes, its value; without those that only ask for help."""
        left = list(words)
        while left:
            word = left.pop(0)
            option, separator, text = word.partition("=")
            if not option.startswith("-"):
                raise ConfigurationError(f"arguments: expected options such as --trainer.max_steps 100, got {option!r}; {self.help}")
            if option in ("-h", "--help", "--print_config") or option.endswith(".help"):
                continue
            name, own = option.lstrip("-"), [word]
            if not separator:
                if not left or left[0].startswith("--"):
                    raise ConfigurationError(f"{name}: {_NONE_GIVEN}; write one behind it")
                text = left.pop(0)
                own.append(text)
            yield own, name, text

    def _given_by(self, name: str, text: str) -> Iterator[tuple[str, Any]]:
        if name in ("c", "config"):
            yield from self._of_file(text, "--config", "", Path())
        elif name in self.groups:
            yield from self._of_file(text, name, f"{name}.", Path())
        else:
            yield name, _checked(name, text)

    def with_whole_lists(self, words: Sequence[str]) -> list[str]:
        """The words, so that the parser replaces a list of objects by a later one as a whole.

        By itself it gives the later list's items what they leave out of the earlier one's, where both are as long.
        """
        result, seen, left = [], set[str](), list(words)
        for own, name, text in self._split(words):
            lists = {one for option, value in self._given_by(name, text) for one in self._lists(option, value)}
            while left[: len(own)] != own:  # what asks for help
                result.append(left.pop(0))
            result += [f"--{one}=[]" for one in sorted(lists & seen)] + own
            left, seen = left[len(own) :], seen | lists
        return result + left

    def _lists(self, name: str, value: Any) -> Iterator[str]:
        """The options that a value gives a list of objects: its own, and those inside it."""
        value = _loaded(value) if isinstance(value, Text) else value
        owner = max((known for known in self.types if f"{name}.".startswith(f"{known}.")), key=len, default=None)
        bases = () if owner is None else classes_in(self.types[owner])
        if owner is None or not bases:
            return
        if owner == name and isinstance(value, list):
            yield name
        elif is_dataclass(bases[0]):
            inner = self._of_object(owner, bases[0])
            options = (
                dict(inner._flat(value, "")) if owner == name and isinstance(value, Mapping) else {name.removeprefix(f"{owner}."): value}
            )
            for option, part in options.items():
                yield from (f"{owner}.{one}" for one in inner._lists(option, part))

    def _of_file(self, text: str, argument: str, prefix: str, folder: Path) -> Iterator[tuple[str, Any]]:
        """The options of a file, or of the YAML that the text itself is; a group's may be in a file beside it."""
        file = folder / text
        yield from self._flat(_read_yaml(text, file, argument), prefix, file.parent)

    def _flat(self, record: Mapping[str, Any], prefix: str, folder: Path = Path()) -> Iterator[tuple[str, Any]]:
        """Group by group, down to the options that have a type."""
        for key, value in record.items():
            name = f"{prefix}{key}"
            if name in self.groups and isinstance(value, Mapping):
                yield from self._flat(value, f"{name}.", folder)
            elif name in self.groups and isinstance(value, str):
                yield from self._of_file(value, name, f"{name}.", folder)
            elif name in self.groups and not (value is None and name in self.nullable):
                got = "null" if value is None else repr(value)
                remedy = "write some, or leave the section out for its defaults"
                raise ConfigurationError(f"{self.prefix}{name}: expected options, got {got:.100}; {remedy}")
            else:
                yield name, value

    # -------------------------------------------------------------------------------------------- judging
    def faults(self, given: Mapping[str, Any], complete: bool = True) -> Iterator[str]:
        """One line for each option that is unknown, has a wrong value, or is missing.

        Args:
            given: name -> value, see :meth:`read`.
            complete: whether these are all that there will be.
        """
        parts: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            plain = name.removesuffix("+")
            owner = max((known for known in self.types if plain.startswith(f"{known}.")), key=len, default=None)
            if plain in self.groups:
                continue  # read() lets nothing pass but a null that leaves it out
            if plain in self.types:
                yield from self._judge(plain, value, self.types[plain], appends=name != plain)
            elif owner is None:
                yield self._unknown(plain)
            else:  # an option of an object: --pruning.reconstruction.ridge, --model.optimizer.lr
                parts.setdefault(owner, {})[plain.removeprefix(f"{owner}.").removeprefix("init_args.")] = value
        for owner, options in parts.items():
            bases = classes_in(self.types[owner], items=False)
            kind = _class_of(given.get(owner), bases)
            if isinstance(kind, type) and (kind not in bases or is_dataclass(kind)):  # else which class it is shows elsewhere
                yield from self._of_object(owner, kind).faults(options, complete=False)
        names = [name.removesuffix("+") for name in given]
        for wanted in self.required if complete else ():
            if not any(f"{name}.".startswith(f"{wanted}.") or wanted.startswith(f"{name}.") for name in names):
                yield f"{self.prefix}{wanted}: {_NONE_GIVEN}; give one, or a configuration such as quickstart.yaml"

    def _of_object(self, name: str, kind: type) -> Options:
        return Options(parser_of(kind), kind.__name__, f"{self.prefix}{name}.", self.help)

    def _unknown(self, name: str) -> str:
        close = nearest_option(name, list(self.types), self.groups)
        hint = f"did you mean {self.prefix}{close}?" if close else self.help
        return f"{self.prefix}{name}: expected an option of {self.owner}, got an unknown one; {hint}"

    def _line(self, name: str, expected: str, value: Any) -> str:
        return f"{self.prefix}{name}: expected {expected}, got {value!r:.100}; {self.help}"

    def _judge(self, name: str, value: Any, hint: Any, appends: bool = False) -> Iterator[str]:
        """What is wrong with a value: the library says whether, its type says what."""
        if _accepts(hint, value, appends):
            return
        value = _loaded(value) if isinstance(value, Text) else value
        for member in _members(hint):
            origin, types = get_origin(member), get_args(member)
            if not isinstance(origin, type):
                continue
            if isinstance(value, list) and issubclass(origin, Sequence):
                for item in value:
                    yield from self._judge(name, item, types[0])
                return
            if isinstance(value, Mapping) and issubclass(origin, Mapping):
                for item in value.values():
                    yield from self._judge(name, item, types[1])
                return
        kind = _class_of(value, classes_in(hint, items=False))
        may_be_plain = isinstance(value, str) and any(member in _WORDS for member in _members(hint))  # --model.optimizer.lr many
        if isinstance(kind, str) and not may_be_plain:
            yield f"{self.prefix}{name}: {kind}"
        elif isinstance(kind, type) and isinstance(value, Mapping):
            inner, has_path = self._of_object(name, kind), "class_path" in value
            options = value.get("init_args") or {} if has_path else value
            yield from inner.faults(dict(inner._flat(options, "")), complete=not has_path)
        else:
            yield self._wrong(name, value, hint)

    def _wrong(self, name: str, value: Any, hint: Any) -> str:
        choices = {str(choice) for member in _members(hint) if get_origin(member) is Literal for choice in get_args(member)}
        if choices:
            return f"{self.prefix}{name}: expected a known {name.split('.')[-1]}, got {value!r}; {nearest(str(value), choices)}"
        kinds = [get_origin(member) or member for member in _members(hint)]
        words = dict.fromkeys(_WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}") for kind in kinds)
        return self._line(name, " or ".join(words), value)


def options_of(parser: ArgumentParser, command: str, nullable: Collection[str] = ()) -> Options:
    """The options of a command.

    >>> parser = ArgumentParser(prog="fit", exit_on_error=False)
    >>> action = parser.add_argument("--model.warmup_steps", type=int, default=0)
    >>> options = options_of(parser, "fit")
    >>> list(options.faults(options.read(["--model.warmup_steps=many"])))
    ["model.warmup_steps: expected a whole number, got 'many'; see adapruner fit --help"]
    """
    return Options(parser, command, "", f"see adapruner {command} --help", nullable)


def explain(options: Options, given: Mapping[str, Any], raised: Exception) -> AdaPrunerError:
    """All that is at fault, as one error; the parser's own text only where it knows more than names and types say."""
    rest = f"arguments: expected those of {options.owner}, got: {' '.join(str(raised).split())[:300]}; {options.help}"
    return together([ConfigurationError(text) for text in list(options.faults(given)) or [rest]])


def _checked(name: str, text: str) -> Text:
    """A value of the command line, which the parser may read as YAML."""
    try:
        check_yaml(text)
    except YAMLRefused as error:
        raise ConfigurationError(f"{name}: expected a value, got {error}; correct it") from None
    except yaml.YAMLError:  # then it is plain text
        pass
    return Text(text)


def _read_yaml(text: str, file: Path, argument: str) -> Mapping[str, Any]:
    """The options of a file, or those that the text itself is."""
    where, content = "", text
    try:
        if "{" not in text and "\n" not in text and text and file.exists():
            where, content = f" in {text:.100}", read_yaml_text(file)
    except (OSError, ValueError, YAMLRefused) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{argument}: expected a file that can be read, got {reason} at {text:.100}; correct it") from None
    try:
        check_yaml(content)
        record = get_loader("yaml")(content)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        got = f"{reason:.150}{where if isinstance(error, YAMLRefused) else ''}"
        raise ConfigurationError(f"{argument}: expected options in YAML, got {got}; mend the file, or write key: value") from None
    if not isinstance(record, Mapping):
        got = repr(text if record is None else record)
        raise ConfigurationError(f"{argument}: expected options in YAML, got {got:.150}; mend the file, or write key: value")
    return record


def _loaded(text: str) -> Any:
    try:
        return get_loader("yaml")(str(text))
    except yaml.YAMLError:
        return text


def _accepts(hint: Any, value: Any, appends: bool) -> bool:
    """Whether the library takes the value for an option of this type alone."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        if isinstance(value, Text):
            parser.parse_args([f"--value{'+' if appends else ''}={value}"])
        else:
            parser.parse_object({"value": deepcopy(value)})  # which it changes in place
    except Exception:  # most, but not all, as ArgumentError
        return False
    return True


def _members(hint: Any) -> list[Any]:
    """The types that a value may have: those of a union one by one, without ``None``."""
    if get_origin(hint) in (Union, UnionType):
        return [member for part in get_args(hint) for member in _members(part)]
    return [] if hint is NoneType else [hint]


def _class_of(value: Any, bases: tuple[type, ...]) -> type | str | None:
    """The class that a value names by ``class_path``, else the first of ``bases``; what is wrong with the path, in words."""
    path = value.get("class_path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    if path is None or not bases:
        return bases[0] if bases else None
    return find_class(str(path), bases)
