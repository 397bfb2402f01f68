"""``adapruner fit --help``, and that of the commands like it: the options that matter, by what they decide; the rest by group.

From the catalogue of options, so that it is there before anything heavy is imported.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from adapruner.cli.help_page import COMMANDS
from adapruner.cli.option_catalogue import Catalogue, Option, read_catalogue
from adapruner.errors import ConfigurationError

HELP = ("-h", "--help")
ALL = "all"

#: What an option decides -> the options that most runs set.
_MODEL_AND_DATA: dict[str, tuple[str, ...]] = {
    "model": ("model.name_or_path", "model.dtype", "model.attn_implementation"),
    "text": (
        "data.calibration.sources",
        "data.calibration.samples_per_source",
        "data.calibration.seq_len",
        "data.search.sources",
        "data.search.samples",
        "data.recovery",
        "data.evaluation",
        "data.batch_size",
    ),
}
_RUN = ("trainer.default_root_dir", "trainer.accelerator", "trainer.devices", "trainer.precision", "seed_everything")
ESSENTIAL: dict[str, dict[str, tuple[str, ...]]] = {
    "fit": {
        **_MODEL_AND_DATA,
        "how much goes": (
            "pruning.budget.pruned_fraction",
            "pruning.budget.of",
            "pruning.budget.parameters_left",
            "pruning.budget.weight_memory_gib",
            "pruning.budget.latency_ms",
        ),
        "which units go": ("pruning.search.n_trials", "pruning.search.sampler", "pruning.recipe", "pruning.plan"),
        "repair": ("pruning.reconstruction", "trainer.max_steps", "recovery.lora.r", "model.optimizer", "model.scheduler"),
        "what comes out": (
            "report.compare",
            "report.compare_recovered",
            "report.prompts",
            "zero_shot.tasks",
            "export.folder",
            "export.dtype",
            "export.gguf",
            "export.push",
        ),
        "the run": _RUN,
    },
    "validate": {
        "model": _MODEL_AND_DATA["model"],
        "text": ("data.search.sources", "data.search.samples", "data.batch_size"),
        "the run": _RUN,
    },
    "test": {"model": _MODEL_AND_DATA["model"], "text": ("data.evaluation", "data.batch_size", "zero_shot.tasks"), "the run": _RUN},
    "predict": {
        "model": _MODEL_AND_DATA["model"],
        "text": ("data.prompts", "model.generation.max_new_tokens", "model.generation.temperature"),
        "the run": _RUN,
    },
}
_TOP = """\
adapruner {command}: {what}

usage: adapruner {command} [--config CONFIG] [--OPTION VALUE] ...

  --config CONFIG         a file of options, or the name of a shipped one; several are laid over each other
  --import FILE           metrics, samplers and the like of your own, from a file or a module; may be repeated
  --print_config          every option with its value, and nothing is run
"""
_BOTTOM = """\
more:
  adapruner {command} --help GROUP               {groups},
  {space}                               or a part of one, such as {part}
  adapruner {command} --help all
  adapruner {command} --model.optimizer.help=AdamW               the options of an object"""


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether a command line asks for this page."""
    return any(word in HELP for word in words)


def command_help(command: str, words: Sequence[str], width: int | None = None) -> str:
    """The page, or that of the group that stands behind ``--help``.

    Args:
        width: columns; those of the terminal by default.

    Raises:
        ConfigurationError: if there is no such group.

    >>> print(command_help("fit", ["--help", "checkpoint"], width=100))
    options of fit below checkpoint
    <BLANKLINE>
      --checkpoint.every_n_steps   a whole number (50)
                                   optimizer steps between two; what a kill can cost at most.
      --checkpoint.resume          true or false (true)
                                   go on from a checkpoint that an earlier run of the same settings left.
    """
    catalogue = read_catalogue(command)
    columns = width or min(130, max(80, shutil.get_terminal_size((110, 0)).columns))
    place = next(i for i, word in enumerate(words) if word in HELP)
    topic = words[place + 1].lstrip("-") if place + 1 < len(words) else ""
    if topic and not words[place + 1].startswith("--"):
        return _of_group(catalogue, topic, columns)
    return _essential(catalogue, columns)


def _essential(catalogue: Catalogue, columns: int) -> str:
    command, options = catalogue.command, catalogue.options
    parts = [_TOP.format(command=command, what=COMMANDS[command])]
    for title, names in ESSENTIAL[command].items():
        parts.append(f"{title}:\n" + _listed({name: options[name] for name in names}, columns, brief=True) + "\n")
    groups = dict.fromkeys(name.split(".")[0] for name in options if "." in name)
    parts.append(_BOTTOM.format(command=command, groups=", ".join(groups), space=" " * len(command), part="data.calibration"))
    return "\n".join(parts)


def _of_group(catalogue: Catalogue, topic: str, columns: int) -> str:
    found = {name: option for name, option in catalogue.options.items() if topic == ALL or f"{name}.".startswith(f"{topic}.")}
    if not found:
        raise ConfigurationError(f"help: expected a group of options, got {topic!r:.100}; {catalogue.nearest(topic)}")
    where = "" if topic == ALL else f" below {topic}"
    return f"options of {catalogue.command}{where}\n\n" + _listed(found, columns, brief=False)


def _listed(options: Mapping[str, Option], columns: int, brief: bool) -> str:
    left = 4 + max(len(name) for name in options) + 2
    lines: list[str] = []
    for name, option in options.items():
        value = option.type + ("" if _is_long(option) else f" ({option.default})")
        text = _first_sentence(option.text) if brief else option.text
        rows = textwrap.wrap(value, columns - left) + textwrap.wrap(text, columns - left)
        lines += [f"  --{name}".ljust(left + 1) + rows[0], *(" " * (left + 1) + row for row in rows[1:])]
    return "\n".join(lines)


def _is_long(option: Option) -> bool:
    return not option.default or len(option.default) > 40


def _first_sentence(text: str) -> str:
    head, dot, _ = text.partition(". ")
    return head + dot.strip()
