"""``adapruner prune MODEL --texts DIR``: the whole job, with the options that such a job needs; ``fit`` does the work."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches

from adapruner.cli.one_line_parser import OneLineParser
from adapruner.cli.option_catalogue import read_catalogue
from adapruner.errors import ConfigurationError

CONFIG = "prune.yaml"
#: Set -> the part of every source's documents that it has, by their hashes: no text is in two.
PARTS = {"calibration": (0.0, 0.3), "search": (0.3, 0.45), "recovery": (0.45, 0.9), "test": (0.9, 1.0)}
#: Windows of a source that perplexity is measured on: a few minutes' worth, and a spread of about one per cent.
TEST_WINDOWS = 256
#: Of the attention and FFN parameters, to remove.
FRACTION = 0.2
#: Windows in a step of the recovery, as the configuration says.
BATCH = 8
_DESCRIPTION = """\
Prune a model: search what goes, remove it, refit, recover with LoRA, measure, report and export.

MODEL is a folder, a GGUF file or a hub name. --texts is a file or a folder (.txt, .md, .jsonl, .json, .csv, .tsv, .parquet, also .gz)
with text of the kind that the model is for. It may be repeated, as NAME=PATH: the search then finds out how much each says. Every
document goes to exactly one of calibration, search, recovery and test. A killed run goes on when it is called again.
"""
_EPILOG = """\
Any option of fit may follow, such as --pruning.budget.of macs or --config mine.yaml; it goes before what stands here.

examples:
  adapruner prune my-model --texts my-texts
  adapruner prune model.gguf --texts wiki=wiki/ --texts code=src.jsonl --fraction 0.3 --out runs/small
  adapruner prune my-model --texts my-texts --recovery 0            # no training
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
    add("--recovery", metavar="N", type=int, default=200, help="LoRA steps of 8 windows; 0: none (default: 200)")
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
        "trainer.max_steps": given.recovery,
        "trainer.default_root_dir": given.out or default_folder(given.model, None if _has_plan(others) else given.fraction),
    }
    if given.dtype is not None:
        options["model.dtype"] = given.dtype
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    sets = json.dumps({"data": data_options(given), **_left_out(given)}, ensure_ascii=False)
    return ["--config", CONFIG, *words, f"--config={sets}", *others]


def check_texts(arguments: Sequence[str]) -> None:
    """Refuses text that is not there, before anything heavy is imported.

    Raises:
        ConfigurationError: naming it.
    """
    for _, path in map(_named, make_parser().parse_known_args(list(arguments))[0].texts):
        if not os.path.exists(path):
            raise ConfigurationError(f"texts: expected a file or a folder, got {path!r}, which does not exist; correct the path")


def data_options(given: argparse.Namespace) -> dict[str, object]:
    """Every set from the same sources, each with a part of its documents."""
    sources = [_named(text) for text in given.texts]
    rows = {**({"column": given.column} if given.column else {}), **({"chat": True} if given.chat else {})}

    def parts(of: str) -> list[dict[str, object]]:
        return [{"name": name, "path": path, "part": list(PARTS[of]), **rows} for name, path in sources]

    evaluation = [{"name": source["name"], "source": source, "limit": TEST_WINDOWS} for source in parts("test")]
    sets: dict[str, object] = {name: {"sources": parts(name)} for name in ("calibration", "search")}
    if given.recovery:  # as many windows as it trains on, and no more text is read
        sets["recovery"] = {"sources": parts("recovery"), "samples": given.recovery * BATCH}
    return {**sets, "evaluation": evaluation}


def default_folder(model: str, fraction: float | None) -> str:
    """A run of its own for each model and fraction; ``None``: by a plan that is given.

    >>> default_folder("models/Llama-3.gguf", 0.2)
    'runs/Llama-3-0.2'
    """
    name = re.sub(r"\.gguf$", "", model.rstrip("/").rpartition("/")[2]) or "model"
    return f"runs/{name}-{'plan' if fraction is None else f'{fraction:g}'}"


def _left_out(given: argparse.Namespace) -> dict[str, object]:
    return {} if given.recovery else {"recovery": None}


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
    for name, low in (("trials", 1), ("recovery", 0)):
        if getattr(given, name) < low:
            raise ConfigurationError(f"{name}: expected {low} or more, got {getattr(given, name)}; correct it")
    if given.fraction is None:
        given.fraction = FRACTION
    elif _has_plan(others):
        raise ConfigurationError(
            f"fraction: expected none beside --pruning.plan, which says what goes, got {given.fraction:g}; leave one of them out"
        )
    if not 0 <= given.fraction < 1:
        raise ConfigurationError(f"fraction: expected 0 or more and less than 1, got {given.fraction:g}; give 0.2 for a fifth")
