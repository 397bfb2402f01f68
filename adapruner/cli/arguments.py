"""What a command line is refused for, in our one line: the option, what was expected, what came, and the remedy.

The parser's own messages are up to a hundred lines long. They are taken apart here by their fixed phrases; one that is not known is
kept, on one line.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adapruner.errors import AdaPrunerError, ConfigurationError, nearest, together

#: Option of an older release -> what stands in its place.
REPLACED = {"pruning.extra_metrics": "report.compare"}
#: Option -> values of an older release, and what stands in their place.
REPLACED_VALUES = {"pruning.search.early_stopping": {"true": "median", "false": "none"}}

_TYPES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "list": "a list", "dict": "a mapping"}


@dataclass(frozen=True)
class Options:
    """What a command takes."""

    command: str
    names: list[str]

    @property
    def help(self) -> str:
        """Where all of them are told."""
        return f"see adapruner {self.command} --help"


def refused(message: str, known: Iterable[str], command: str = "fit") -> AdaPrunerError:
    """The error for a message of the parser; several unknown options are one error.

    Args:
        known: every option's name, for the nearest one.
        command: whose options they are.

    >>> refused('Parser key "model.warmup_steps": Expected a <class \\'int\\'>. Got value: many', [])
    ConfigurationError("model.warmup_steps: expected a whole number, got 'many'; see adapruner fit --help")
    """
    options = Options(command, [name for name in known if name])
    choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*?)\)", message)
    if choice is not None:
        commands = [*re.findall(r"'?([a-z]+)'?", choice[2]), "compare", "export", "inspect"]
        return ConfigurationError(f"command: expected one of those known, got {choice[1]!r}; {nearest(choice[1], commands)}")
    unknown = _unknown_arguments(message, options)
    if unknown:
        return together([ConfigurationError(text) for text in unknown])
    for explain in (_unknown_key, _missing, _wrong_value, _no_class, _damaged_file):
        text = explain(message, options)
        if text is not None:
            return ConfigurationError(text)
    return ConfigurationError(f"arguments: expected those of {command}, got: {' '.join(message.split())[:300]}; {options.help}")


def _unknown_arguments(message: str, known: Options) -> list[str]:
    found = re.search(r"unrecognized arguments: (.*)", message, re.DOTALL)
    words = found[1].split() if found else []
    names = [word.split("=")[0].lstrip("-") for word in words if word.startswith("--")]
    if words and not names:
        return [f"arguments: expected options such as --trainer.max_steps 100, got {words[0]!r}; {known.help}"]
    return [_unknown(name, known) for name in names]


def _unknown_key(message: str, known: Options) -> str | None:
    group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if group is not None:
        return _unknown(f"{group[1]}.{group[2]}", known)
    option = re.search(r"Option '([\w.]+)' is not accepted|Subcommand '\w+' does not accept option '(?P<name>[\w.]+)'", message)
    if option is None:
        return None
    key, owner = _key(message), re.findall(r"given class_path '([\w.]+)'", message[: option.start()])
    if not key or not owner:
        return _unknown(option["name"] or option[1], known)
    return f"{key}: expected options of {owner[-1].split('.')[-1]}, got {option[1]!r}; {nearest(option[1], _options_of(owner[-1]))}"


def _unknown(name: str, known: Options) -> str:
    if name in REPLACED:
        return f"{name}: expected an option of this release, got one of an older release; give {REPLACED[name]}"
    close = difflib.get_close_matches(name, known.names, n=1, cutoff=0.7)
    if not close:  # --n_trials: its sections were left out
        last = {known_name.split(".")[-1]: known_name for known_name in reversed(known.names)}
        close = [last[word] for word in difflib.get_close_matches(name.split(".")[-1], last, n=1, cutoff=0.8)]
    hint = f"did you mean {close[0]}?" if close else known.help
    return f"{name}: expected an option of {known.command}, got an unknown one; {hint}"


def _missing(message: str, known: Options) -> str | None:
    required = re.search(r"following arguments are required: ([\w., ]+)", message)
    if required is not None:
        key = _key(message)
        name = f"{key}.{required[1]}" if key else required[1].removeprefix(f"{known.command}.")
        return f"{name}: expected a value, got none; give one, or a configuration such as quickstart.yaml"
    no_value = re.search(r"argument (?:-c/)?--([\w.]+): expected one argument", message)
    return None if no_value is None else f"{no_value[1]}: expected a value, got none; write one behind it"


def _wrong_value(message: str, known: Options) -> str | None:
    key, got = _key(message), re.search(r"Expected a[^\n]*\. Got value: (.*)", message) or re.search(r"Given value: ([^{\[].*)", message)
    if not key or got is None:
        return None
    value = got[1].split(". Got value: ")[0].strip()
    replaced = REPLACED_VALUES.get(key, {}).get(value.lower())
    if replaced is not None:
        return f"{key}: expected a value of this release, got {value}, of an older release; give {replaced}"
    literals = re.findall(r"Expected an? typing\.Literal\[(.*?)\]", message)
    choices = [name for literal in literals for name in re.findall(r"'([^']*)'", literal)]
    if choices:
        return f"{key}: expected a known {key.split('.')[-1]}, got {value!r}; {nearest(value, choices)}"
    kinds = [_TYPES[name] for name in dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", message)) if name in _TYPES]
    return f"{key}: expected {' or '.join(kinds)}, got {value!r:.100}; {known.help}" if kinds else None


def _no_class(message: str, known: Options) -> str | None:
    key = _key(message)
    absent = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    if key and absent is not None:
        names = [name for name in vars(importlib.import_module(absent[1])) if name[0].isupper()]
        close = difflib.get_close_matches(absent[2], names, n=1)
        hint = f"did you mean {absent[1]}.{close[0]}?" if close else "correct the name"
        return f"{key}: expected a class of {absent[1]}, got {absent[2]!r}; {hint}"
    plain = re.search(r"Expected a dot import path string: (.*)", message) or re.search(r"(?:No module named|import) '([\w.]+)'", message)
    if key and plain is not None:
        return f"{key}: expected the path of a class, such as torch.optim.AdamW, got {plain[1]!r}; correct it"
    return None


def _damaged_file(message: str, known: Options) -> str | None:
    found = re.search(r"(Problems parsing config|Unexpected config|Unable to load config)[: ](.*)", message, re.DOTALL)
    if found is None:
        return None
    got = re.sub(r"\s*- Parser key .*", "", " ".join(found[2].split()))
    key = _key(message) or "--config"
    return f"{key}: expected options in YAML, got {got[:150]}; mend the file, or write key: value"


def _key(message: str) -> str:
    """The full name of the option: the parser says it level by level."""
    keys: list[str] = []
    for key in re.findall(r'Parser key "([\w.]+)"', message):
        if key not in keys:
            keys.append(key)
    return ".".join(keys)


def _options_of(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    return [p for p in inspect.signature(getattr(importlib.import_module(module), name)).parameters if p != "self"]


class Refusals(list[AdaPrunerError]):
    """What was refused so far; once ``closed``, a refusal is raised where it happens."""

    closed = False


class _Refused:
    """Stands where an object would be whose options were refused; what needs it is not made either."""


def collecting(make: Callable[..., Any], refusals: Refusals) -> Callable[..., Any]:
    """An instantiator of the parser that works as ``make`` but keeps an :class:`AdaPrunerError` for later, so that every section
    is looked at."""

    def instantiate(kind: type, /, *arguments: Any, applied_instantiation_links: dict[str, Any], **options: Any) -> Any:
        parts = [part for value in (*arguments, *options.values()) for part in (value if isinstance(value, list) else [value])]
        if any(isinstance(part, _Refused) for part in parts):
            return _Refused()
        try:
            return make(kind, *arguments, applied_instantiation_links=applied_instantiation_links, **options)
        except AdaPrunerError as error:
            if refusals.closed:  # optimizers are made while training begins
                raise
            refusals.append(error)
            return _Refused()

    return instantiate


def make_plainly(kind: type, /, *arguments: Any, applied_instantiation_links: dict[str, Any], **options: Any) -> Any:
    """The parser's own way of making an object; what another library's class refuses is our error."""
    if kind.__module__.startswith("adapruner"):
        return kind(*arguments, **options)
    with one_line(kind.__name__, (ValueError, TypeError)):
        return kind(*arguments, **options)


@contextmanager
def one_line(what: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Another library's refusals as one of ours."""
    try:
        yield
    except AdaPrunerError:
        raise
    except kinds as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"{what}: expected options that it takes, got: {reason}; correct them") from error
