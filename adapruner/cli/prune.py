"""``adapruner prune MODEL --texts DIR``: the whole job, with the options that such a job needs; ``fit`` does the work."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from adapruner.cli.one_line_parser import OneLineParser
from adapruner.cli.option_catalogue import read_catalogue
from adapruner.cli.shipped_configs import find_configs
from adapruner.errors import ConfigurationError, DataError
from adapruner.recovery.time_budget import seconds_of

CONFIG = "prune.yaml"
#: Set -> the part of every source's documents that it has, by their hashes: no text is in two.
PARTS = {"calibration": (0.0, 0.3), "search": (0.3, 0.45), "recovery": (0.45, 0.9), "test": (0.9, 1.0)}
#: Windows of a source that perplexity is measured on: a few minutes' worth, and a spread of about one per cent.
TEST_WINDOWS = 256
#: Of the attention and FFN parameters, to remove.
FRACTION = 0.2
#: Option of ``fit`` -> the short one that writes it; what is refused is called so.
SHORT = {
    "model.name_or_path": "model",
    "model.dtype": "dtype",
    "pruning.budget.pruned_fraction": "fraction",
    "pruning.search.n_trials": "trials",
    "trainer.max_steps": "recovery",
    "trainer.default_root_dir": "out",
    "data": "texts",
}
#: Besides, what removes more than units.
_ALSO_REMOVES = ("pruning.remove_layers", "pruning.hidden_fraction")
#: Windows in a step of the recovery, as the configuration says.
BATCH = 8
_DESCRIPTION = """\
Prune a model: search what goes, remove it, refit, recover with LoRA, measure, report and export.

MODEL is a folder, a GGUF file or a hub name. --texts is a file or a folder (.txt, .md, .jsonl, .json, .csv, .tsv, .parquet, also .gz)
with text of the kind that the model is for. It may be repeated, as NAME=PATH: the search then finds out how much each says. Every
document goes to exactly one of calibration, search, recovery and test. A killed run goes on when it is called again; a finished one says
that it is finished, and how it begins again.
"""
_EPILOG = """\
Any option of fit may follow, such as --pruning.budget.of macs or --config mine.yaml; it overrides what stands here.

examples:
  adapruner prune my-model --texts my-texts
  adapruner prune model.gguf --texts wiki=wiki/ --texts code=src.jsonl --fraction 0.3 --out runs/small
  adapruner prune my-model --texts my-texts --recovery 0            # no training
  adapruner prune my-model --texts my-texts --recovery 45m          # as much training as fits
  adapruner prune my-model --texts my-texts --chat                  # rows of messages, by the model's own template
"""


def make_parser() -> argparse.ArgumentParser:
    """The command's own options."""
    parser = OneLineParser(
        "prune",
        "MODEL --texts DIR [options]",
        usage="adapruner prune MODEL --texts PATH [--texts NAME=PATH ...] [options] [options of fit]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, a GGUF file or a hub name")
    add("--texts", metavar="PATH", action="append", default=[], help="text, or NAME=PATH; may be repeated")
    add("--fraction", metavar="F", type=float, help="of the attention and FFN parameters, to remove (default: 0.2)")
    add("--out", metavar="DIR", help="the folder of the run (default: runs/MODEL-F)")
    add("--trials", metavar="N", type=int, default=64, help="of the search (default: 64)")
    add("--recovery", metavar="N", default="200", help="LoRA steps of 8 windows, or a time such as 45m; 0: none (default: 200)")
    add("--column", metavar="NAME", help="the column with the text, where rows have columns (default: text)")
    add("--chat", action="store_true", help="rows have messages, which the model's chat template writes")
    add("--dtype", metavar="TYPE", help="to compute in: float32, bfloat16 (default: as saved)")
    add("--import", metavar="FILE", help="metrics, samplers and the like of your own; may be repeated")
    return parser


def fit_words(arguments: Sequence[str]) -> list[str]:
    """The command line of ``fit`` that does what was asked.

    Args:
        arguments: behind ``prune``, without ``--import``.

    Raises:
        ConfigurationError: for arguments that cannot work.

    >>> fit_words(["my-model", "--texts", "my-texts", "--fraction", "0.3"])[:4]
    ['--config', 'prune.yaml', '--model.name_or_path', 'my-model']
    """
    if arguments and arguments[0].startswith("-") and arguments[0].partition("=")[0] not in _own_options():
        raise ConfigurationError(f"prune: expected the model first, got {arguments[0]}; write options of fit behind MODEL")
    given, others = make_parser().parse_known_args(list(arguments))
    _check(given, others)
    options = {
        "model.name_or_path": given.model,
        "pruning.budget.pruned_fraction": given.fraction,
        "pruning.search.n_trials": given.trials,
        "trainer.max_steps": -1 if given.time else given.steps,
        "trainer.default_root_dir": given.out or default_folder(given.model, None if _has_plan(others) else given.fraction),
    }
    if given.time:
        options |= {"recovery.time_budget": given.time, "trainer.max_epochs": -1}
    if given.dtype is not None:
        options["model.dtype"] = given.dtype
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    sets = json.dumps({"data": data_options(given), **_left_out(given)}, ensure_ascii=False)
    return ["--config", CONFIG, *words, f"--config={sets}", *others]


def short_names(arguments: Sequence[str]) -> dict[str, str]:
    """What messages call options: those of ``fit`` that were written behind ``prune`` by their own names, others by the short ones.

    Args:
        arguments: behind ``prune``, without ``--import``.

    >>> short_names(["my-model", "--texts", "my-texts", "--pruning.search.n_trials", "8"]).get("search.n_trials", "its own")
    'its own'
    """
    own = read_catalogue("fit").names_given(_found(make_parser().parse_known_args(list(arguments))[1]))
    names = {name: short for name, short in SHORT.items() if not any(f"{one}.".startswith(f"{name}.") for one in own)}
    inside = {name.removeprefix("pruning."): short for name, short in names.items()}  # as Python knows them
    return {**names, **inside, **({"folder": "out"} if "trainer.default_root_dir" in names else {})}


def check_texts(arguments: Sequence[str]) -> None:
    """Refuses text that is not there or cannot be read as asked, before anything heavy is imported.

    Raises:
        ConfigurationError: naming it.
    """
    from adapruner.data.text_source import TextSource

    for source in _sources(make_parser().parse_known_args(list(arguments))[0]):
        if not os.path.exists(str(source["path"])):
            got = f"{source['path']!r}, which does not exist"
            raise ConfigurationError(f"texts: expected a file or a folder, got {got}; correct the path")
        try:
            TextSource(**source).reader.check()
        except DataError as error:
            _, _, reason = str(error).partition(": expected ")
            raise ConfigurationError(f"texts: expected {reason}") from None


def data_options(given: argparse.Namespace) -> dict[str, object]:
    """Every set from the same sources, each with a part of its documents."""

    def parts(of: str) -> list[dict[str, Any]]:
        return [{**source, "part": list(PARTS[of])} for source in _sources(given)]

    evaluation = [{"name": source["name"], "source": source, "limit": TEST_WINDOWS} for source in parts("test")]
    sets: dict[str, object] = {name: {"sources": parts(name)} for name in ("calibration", "search")}
    if given.time:  # nobody knows how many windows that is
        sets["recovery"] = {"sources": parts("recovery")}
    elif given.steps:  # as many windows as it trains on, and no more text is read
        sets["recovery"] = {"sources": parts("recovery"), "samples": given.steps * BATCH}
    return {**sets, "evaluation": evaluation}


def _sources(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Fields of each source of text, of all of its documents."""
    rows = {**({"column": given.column} if given.column else {}), **({"chat": True} if given.chat else {})}
    return [{"name": name, "path": path, **rows} for name, path in map(_named, given.texts)]


def default_folder(model: str, fraction: float | None) -> str:
    """A run of its own for each model and fraction; ``None``: by a plan that is given.

    >>> default_folder("models/Llama-3.gguf", 0.2)
    'runs/Llama-3-0.2'
    """
    name = re.sub(r"\.gguf$", "", model.rstrip("/").rpartition("/")[2]) or "model"
    return f"runs/{name}-{'plan' if fraction is None else f'{fraction:g}'}"


def _left_out(given: argparse.Namespace) -> dict[str, object]:
    return {} if given.steps or given.time else {"recovery": None}


def _steps_or_time(text: str) -> tuple[int, str | None]:
    """Steps of the recovery, or its time, which is the one with a unit.

    >>> _steps_or_time("200"), _steps_or_time("45m")
    ((200, None), (0, '45m'))
    """
    if re.fullmatch(r"[+-]?\d+", text.strip()):
        if int(text) < 0:
            raise ConfigurationError(f"recovery: expected 0 or more, got {text}; correct it")
        return int(text), None
    if not re.search(r"[a-z]", text, re.IGNORECASE):
        raise ConfigurationError(f"recovery: expected whole steps, or a time with a unit such as 45m, got {text!r}; give 200, or 200s")
    seconds_of(text, "recovery")
    return 0, text


def _named(text: str) -> tuple[str, str]:
    """``NAME=PATH``, or a path, whose last part is the name."""
    name, separator, path = text.partition("=")
    if separator and "/" not in name and not os.path.exists(text):
        return name, path
    return text.rstrip("/").rpartition("/")[2] or text, text


def _has_plan(others: Sequence[str]) -> bool:
    """Whether an option of ``fit`` gives a plan, which says by itself what goes."""
    return any(word.partition("=")[0] == "--pruning.plan" for word in others)


def _own_options() -> list[str]:
    return [option for action in make_parser()._actions for option in action.option_strings]


def _is_option_of_fit(name: str) -> bool:
    """Whether ``fit`` is to judge it: a name of its own, or one with a dot, which it knows how to correct."""
    fit = read_catalogue("fit")
    return "." in name or name in fit.options or name in fit.groups or name in ("config", "print_config")


def _found(others: Sequence[str]) -> list[str]:
    """Options of ``fit`` with the configurations that they name; none where one is not there, which is refused later."""
    try:
        return find_configs(list(others))
    except ConfigurationError:
        return []


def _check_fraction(fraction: float, others: Sequence[str]) -> None:
    """What no model can lose: of every group of units some stay."""
    catalogue, words = read_catalogue("fit"), _found(others)
    if not 0 <= fraction < 1:
        raise ConfigurationError(f"fraction: expected 0 or more and less than 1, got {fraction:g}; give 0.2 for a fifth")
    if any(name in catalogue.names_given(words) for name in (*_ALSO_REMOVES, "pruning.budget", "pruning.plan")):
        return
    option = "pruning.budget.keep_at_least"
    try:
        kept = float(catalogue.value(words, option) or catalogue.options[option].default)
    except (TypeError, ValueError):  # the parser says what is wrong with it
        return
    if fraction and fraction >= 1 - kept:
        raise ConfigurationError(
            f"fraction: expected less than {1 - kept:g}, since {kept:.0%} of all heads and channels stay in each layer, got {fraction:g}; "
            "give 0.5 or less"
        )


def _check(given: argparse.Namespace, others: Sequence[str]) -> None:
    own = _own_options()
    for word in others:
        if word.startswith("--") and not _is_option_of_fit(word.partition("=")[0][2:]):
            close = get_close_matches(word.partition("=")[0], own, n=1)
            hint = f"did you mean {close[0]}?" if close else "see adapruner prune --help"
            raise ConfigurationError(f"{word.lstrip('-')}: expected an option of prune or of fit, got an unknown one; {hint}")
    if others and not others[0].startswith("-"):
        raise ConfigurationError(f"prune: expected one model, got {others[0]!r} too; text goes behind --texts")
    if not given.texts:
        raise ConfigurationError(
            "texts: expected --texts PATH, got none; name a file or a folder of text, or let the model write some first: "
            f"adapruner write-texts {shlex.quote(given.model)} --out own.jsonl, then --texts own=own.jsonl"
        )
    names = [_named(text)[0] for text in given.texts]
    if len(set(names)) < len(names) or not all(names):
        raise ConfigurationError(f"texts: expected each name once, got {', '.join(names)}; give them as NAME=PATH")
    if given.trials < 1:
        raise ConfigurationError(f"trials: expected 1 or more, got {given.trials}; correct it")
    given.steps, given.time = _steps_or_time(given.recovery)
    if given.fraction is None:
        given.fraction = FRACTION
    elif _has_plan(others):
        raise ConfigurationError(
            f"fraction: expected none beside --pruning.plan, which says what goes, got {given.fraction:g}; leave one of them out"
        )
    _check_fraction(given.fraction, others)
