"""What is wrong with the options of a command, one line for each: found from the parser's options and their types.

jsonargparse says what it does not accept in prose of up to a hundred lines, and of one option at a time. Where it raises
an error, each option that was given on the command line or in a configuration is therefore judged again, by its name and its type alone.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, get_loader

from adapruner.errors import AdaPrunerError, ConfigurationError, nearest, together

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
    """

    def __init__(self, parser: ArgumentParser, owner: str, prefix: str, help: str) -> None:
        self.owner, self.prefix, self.help = owner, prefix, help
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
        left = list(words)
        while left:
            option, separator, text = left.pop(0).partition("=")
            if not option.startswith("-"):
                raise ConfigurationError(f"arguments: expected options such as --trainer.max_steps 100, got {option!r}; {self.help}")
            if option in ("-h", "--help", "--print_config") or option.endswith(".help"):
                continue
            name = option.lstrip("-")
            if not separator:
                if not left or left[0].startswith("--"):
                    raise ConfigurationError(f"{name}: {_NONE_GIVEN}; write one behind it")
                text = left.pop(0)
            if name in ("c", "config"):
                yield from self._flat(_read_yaml(text, "--config"), "")
            elif name in self.groups:
                yield from self._flat(_read_yaml(text, name), f"{name}.")
            else:
                yield name, Text(text)

    def _flat(self, record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        """Group by group, down to the options that have a type."""
        for key, value in record.items():
            name = f"{prefix}{key}"
            if name in self.groups and isinstance(value, Mapping):
                yield from self._flat(value, f"{name}.")
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
                if not isinstance(value, str | None):  # the name of a file with its options
                    yield self._line(plain, "options in YAML, key: value", value)
            elif plain in self.types:
                yield from self._judge(plain, value, self.types[plain], appends=name != plain)
            elif owner is None:
                yield self._unknown(plain)
            else:  # an option of an object: --pruning.reconstruction.ridge, --model.optimizer.lr
                parts.setdefault(owner, {})[plain.removeprefix(f"{owner}.").removeprefix("init_args.")] = value
        for owner, options in parts.items():
            base = _base_class(self.types[owner])
            kind = _class_of(given.get(owner), base)
            if isinstance(kind, type) and (kind is not base or is_dataclass(base)):  # else which class it is shows elsewhere
                yield from self._of_object(owner, kind).faults(options, complete=False)
        names = [name.removesuffix("+") for name in given]
        for wanted in self.required if complete else ():
            if not any(f"{name}.".startswith(f"{wanted}.") or wanted.startswith(f"{name}.") for name in names):
                yield f"{self.prefix}{wanted}: {_NONE_GIVEN}; give one, or a configuration such as quickstart.yaml"

    def _of_object(self, name: str, kind: type) -> Options:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind, fail_untyped=False)
        return Options(parser, kind.__name__, f"{self.prefix}{name}.", self.help)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, [*self.types, *self.groups], n=1, cutoff=0.7)
        if not close:  # --n_trials: its groups were left out
            last = {known.split(".")[-1]: known for known in reversed(self.types)}
            close = [last[word] for word in difflib.get_close_matches(name.split(".")[-1], last, n=1, cutoff=0.8)]
        hint = f"did you mean {self.prefix}{close[0]}?" if close else self.help
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
        kind = _class_of(value, _base_class(hint))
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


def options_of(parser: ArgumentParser, command: str) -> Options:
    """The options of a command.

    >>> parser = ArgumentParser(prog="fit", exit_on_error=False)
    >>> action = parser.add_argument("--model.warmup_steps", type=int, default=0)
    >>> options = options_of(parser, "fit")
    >>> list(options.faults(options.read(["--model.warmup_steps=many"])))
    ["model.warmup_steps: expected a whole number, got 'many'; see adapruner fit --help"]
    """
    return Options(parser, command, "", f"see adapruner {command} --help")


def explain(options: Options, given: Mapping[str, Any], raised: ArgumentError) -> AdaPrunerError:
    """All that is at fault, as one error; the parser's own text only where it knows more than names and types say."""
    rest = f"arguments: expected those of {options.owner}, got: {' '.join(str(raised).split())[:300]}; {options.help}"
    return together([ConfigurationError(text) for text in list(options.faults(given)) or [rest]])


def _read_yaml(text: str, argument: str) -> Mapping[str, Any]:
    """The options of a file, or those that the text itself is."""
    try:
        is_file = "{" not in text and "\n" not in text and Path(text).exists()
        content = Path(text).read_text(encoding="utf-8") if is_file else text
        record = get_loader("yaml")(content)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigurationError(f"{argument}: expected options in YAML, got {where:.150}; mend the file, or write key: value") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "bytes that are not UTF-8"
        raise ConfigurationError(f"{argument}: expected a file that can be read, got {reason} at {text:.100}; correct it") from None
    if not isinstance(record, Mapping):
        raise ConfigurationError(f"{argument}: expected options in YAML, got {record!r:.150}; mend the file, or write key: value")
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
    except ArgumentError:
        return False
    return True


def _members(hint: Any) -> list[Any]:
    """The types that a value may have: those of a union one by one, without ``None``."""
    if get_origin(hint) in (Union, UnionType):
        return [member for part in get_args(hint) for member in _members(part)]
    return [] if hint is NoneType else [hint]


def _base_class(hint: Any) -> type | None:
    """The class of the objects that a type stands for: its own, or what a callable returns."""
    for member in _members(hint):
        if get_origin(member) is Callable:
            return _base_class(get_args(member)[-1])
        if inspect.isclass(member) and member not in _WORDS and get_origin(member) is None:
            return member
    return None


def _class_of(value: Any, base: type | None) -> type | str | None:
    """The class that a value names by ``class_path``, else ``base``; what is wrong with the path, in words."""
    path = value.get("class_path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    if path is None or base is None:
        return base
    module, _, name = str(path).rpartition(".")
    known = {kind.__name__: kind for kind in _subclasses(base)}
    if not module and name in known:
        return known[name]
    try:
        holder = importlib.import_module(module)
    except Exception:  # it may fail in any way
        return f"expected the path of a class, such as torch.optim.AdamW, got {path!r}; correct it"
    if hasattr(holder, name):
        return getattr(holder, name)  # type: ignore[no-any-return]
    close = difflib.get_close_matches(name, [word for word in vars(holder) if word[0].isupper()], n=1)
    return f"expected a class of {module}, got {name!r}; {f'did you mean {module}.{close[0]}?' if close else 'correct the name'}"


def _subclasses(base: type) -> Iterator[type]:
    kind: type
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)
