"""From the words of a command line to a configuration of which nothing has been called yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from adapruner.argument_checks import check_seed
from adapruner.cli.class_paths import class_faults, installed_only, set_parser_limits
from adapruner.cli.option_catalogue import FOLDERS
from adapruner.cli.option_errors import Text, explain, options_of
from adapruner.compare.spec import CODE
from adapruner.errors import AdaPrunerError, ConfigurationError, check_all, together
from adapruner.files.paths import check_folder_path, check_path
from adapruner.files.yaml_text import set_yaml_limits

#: What runs code that comes with a model or a task: only the command line may ask for it, not a configuration.
_CODE = dict(zip(CODE, ("true", "FOLDER"), strict=True))
_PATHS = (
    "model.name_or_path",
    "data.tokenizer",
    "data.prompts",
    "data.calibration.given_set",
    "pruning.plan",
    "zero_shot.task_folder",
)


def parse(
    parse_args: Callable[[list[str]], Namespace], parser: ArgumentParser, command: str, words: Sequence[str], nullable: Collection[str]
) -> tuple[Namespace, Mapping[str, Any]]:
    """The configuration, and the options that were given, by name.

    Args:
        parse_args: parses the words; what it returns has the options themselves, or below the command's name.
        parser: that has the command's options.
        nullable: groups that ``null`` leaves out.

    Raises:
        ConfigurationError: in one line, for what is no option, no value of it, or would run code.
    """
    set_parser_limits()
    set_yaml_limits()
    options = options_of(parser, command, nullable)
    with installed_only():
        given = options.read(words)
        try:
            config = parse_args(options.with_whole_lists(words))
        except AdaPrunerError:
            raise
        except Exception as error:  # the parser raises most, but not all, as ArgumentError
            raise explain(options, given, error) from None
        own = config.get(command, config)
        faults = [ConfigurationError(text) for text in class_faults(parser, own)]
    if faults:
        raise together(faults)
    check_all(
        lambda: _check_code(own, given),
        *(partial(check_path, name, own.get(name)) for name in _PATHS),
        *(partial(check_folder_path, name, own.get(name)) for name in FOLDERS),
        lambda: _check_export_folder(own),
        lambda: check_seed("seed_everything", own.get("seed_everything")) if type(own.get("seed_everything")) is int else None,
        lambda: _check_weights_only(own),
    )
    return config, given


def _check_code(config: Namespace, given: Mapping[str, Any]) -> None:
    for name, value in _CODE.items():
        if config.get(name) and not isinstance(given.get(name), Text):
            raise ConfigurationError(
                f"{name}: expected on the command line alone, since it runs code that comes along, got it in a configuration; "
                f"give --{name} {value}"
            )
    kernel = str(config.get("model.attn_implementation") or "")
    if "/" in kernel and not config.get("model.trust_remote_code"):
        raise ConfigurationError(
            f"model.attn_implementation: expected one of the library, got {kernel!r:.100}, code from the hub; "
            "give --model.trust_remote_code true to run it"
        )


def _check_export_folder(config: Namespace) -> None:
    """An export is replaced as a whole: not the run folder with it."""
    folder, run = config.get("export.folder"), config.get("trainer.default_root_dir") or "."
    if "\0" in f"{folder}{run}":  # refused as a path
        return
    place = Path(os.path.realpath(run))
    if folder and Path(os.path.realpath(folder)) in (place, *place.parents):
        raise ConfigurationError(f"export.folder: expected a folder of its own, got {folder!r}, which holds the run folder; choose another")


def _check_weights_only(config: Namespace) -> None:
    if config.get("weights_only") is False:
        raise ConfigurationError("weights_only: expected true, got false, which runs code in a checkpoint; leave it out")
