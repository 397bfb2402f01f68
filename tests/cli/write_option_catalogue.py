"""Writes ``adapruner/cli/options.json`` from the parsers themselves.

python -m tests.cli.write_option_catalogue
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import lightning
import yaml
from jsonargparse import ArgumentParser

from adapruner.cli.class_paths import classes_in, parser_of
from adapruner.cli.fit import make_parser
from adapruner.cli.help_page import LIKE_FIT
from adapruner.cli.option_catalogue import FILE, Option, catalogue_text
from adapruner.cli.option_errors import _WORDS, _members
from adapruner.importance.metrics import METRICS
from adapruner.models.loading import DTYPES
from adapruner.pruning.allocation import ALLOCATIONS
from adapruner.pruning.costs import COSTS
from adapruner.pruning.layer_scores import LAYER_SCORES
from adapruner.pruning.recipe import CHOICES as RECIPE_CHOICES
from adapruner.registry import Registry
from adapruner.search.config import ORDERS
from adapruner.search.objectives import OBJECTIVES
from adapruner.search.samplers import SAMPLERS
from adapruner.search.space import _CHOICES
from adapruner.search.stoppers import STOPPERS

_PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts", "true or false": "true and false"}


#: Choices that are names.
_NAMED = [name for name, choices in RECIPE_CHOICES.items() if all(isinstance(choice, str) for choice in choices)]
#: Option -> what can be named by it, where another package may add to it the registry.
KNOWN: dict[str, Registry[Any] | Sequence[str]] = {
    "model.dtype": DTYPES,
    "pruning.budget.of": COSTS,
    "pruning.layer_score": LAYER_SCORES,
    "pruning.search.early_stopping": STOPPERS,
    "pruning.search.objective.measure": OBJECTIVES,
    "pruning.search.order": ORDERS,
    "pruning.search.sampler": SAMPLERS,
    "pruning.search.space.allocation.method": ALLOCATIONS,
    "pruning.search.space.metrics": METRICS,
    "pruning.recipe.allocation.method": ALLOCATIONS,
    "pruning.recipe.coefficients": METRICS,
    "report.compare": METRICS,
    **{f"pruning.recipe.{name}": RECIPE_CHOICES[name] for name in _NAMED},
    **{f"pruning.search.space.{several}": RECIPE_CHOICES[name] for several, name in _CHOICES.items() if name in _NAMED},
}


#: Types that read better by what one writes.
_NAMES = {"Callable": "the path of a class", "Path": "a path", "PathLike": "a path", "Any": "any value", "Iterable": "a list"}


def text() -> str:
    """What the file has to hold."""
    commands = {command: dict(sorted(options_of(make_parser(command)))) for command in LIKE_FIT}
    return catalogue_text(commands, lightning.__version__)


def options_of(parser: ArgumentParser, prefix: str = "") -> Iterator[tuple[str, Option]]:
    """Every option, with those of configurations that are the value of one."""
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or action.dest.endswith(".help"):
            continue
        name, kinds = f"{prefix}{action.dest}", classes_in(hint, items=False)
        own = [kind for kind in kinds if is_dataclass(kind)]
        many = any(isinstance(get_origin(m) or m, type) and issubclass(get_origin(m) or m, Mapping) for m in _members(hint))
        is_open = many or (bool(kinds) and not own and not all(issubclass(kind, Path | Enum) for kind in kinds)) or hint is Any
        yield (
            name,
            Option(
                in_words(hint), default_of(action), plain(action.help or ""), own[0].__name__ if own else "", is_open, **known_names(name)
            ),
        )
        for kind in own:
            yield from options_of(parser_of(kind), f"{name}.")


def known_names(name: str) -> dict[str, Any]:
    """Of :data:`KNOWN`, the names that are shipped."""
    known = KNOWN.get(name, ())
    if not isinstance(known, Registry):
        return {"known": [str(one) for one in known]}
    return {"known": [one for one in known.names() if known._ships(known.find(one))], "group": known.group or ""}


def in_words(hint: Any) -> str:
    """``int | None`` as ``a whole number or null``."""
    members = _members(hint)
    choices = [str(choice) for member in members if get_origin(member) is Literal for choice in get_args(member)]
    words = [_word(member) for member in members if get_origin(member) is not Literal]
    has_none = NoneType in get_args(hint) and hint is not NoneType
    return " or ".join(dict.fromkeys([*words, *([", ".join(choices)] if choices else []), *(["null"] if has_none else [])])) or "any value"


def _word(member: Any) -> str:
    kind = get_origin(member) or member
    if isinstance(kind, type) and issubclass(kind, list | tuple) and get_args(member):
        return f"a list of {_PLURALS.get(item := in_words(get_args(member)[0]), item.removeprefix('a ').removeprefix('an '))}"
    name = getattr(kind, "__name__", str(kind))
    return _NAMES.get(name) or _WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def default_of(action: Any) -> str:
    """As one would write it."""
    if action.required:
        return ""
    value = action.default
    if isinstance(value, dict) and any(is_dataclass(kind) for kind in classes_in(action._typehint, items=False)):
        return ""  # it stands with its own options
    if value is not None and not isinstance(value, str | int | float | bool | list | tuple | dict):
        value = str(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def plain(help: str) -> str:
    """Without the marks of reStructuredText, on one line."""
    words = re.sub(r":\w+:`~?\.?(?:[\w.]*\.)?(\w+)`", r"\1", help.replace("``", ""))
    return " ".join(words.split())


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
