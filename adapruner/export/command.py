"""``adapruner export``: writes the model of a run as a folder that loads elsewhere."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.options import check_options

_DESCRIPTION = """\
Write the pruned model of a run as a Hugging Face folder: safetensors, configuration, tokenizer, plan and model card.

RUN is a folder that fit wrote into. The model is built again from the base model, the plan and the last checkpoint; the
finished model/ in the folder serves where the checkpoints end before it, or there are none. RUN may also be an exported
folder itself. Checkpoints are read without running code in them, and a plan, a base model or weights that do not belong
together are refused. DIR is written as a whole or not at all; an earlier export there is replaced.
"""
_EPILOG = """\
examples:
  adapruner export runs/llama out/llama-pruned --dtype bfloat16 --max_shard_size 2GB
  adapruner export runs/llama out/llama-pruned --adapters folder        # the LoRA recovery in out/llama-pruned/adapter
  adapruner export runs/llama/model out/half --dtype float16            # no base model and no checkpoint needed
  adapruner export runs/llama out/llama-pruned --push me/llama-pruned
"""
_TOLERANCE = 1e-3
"""Largest difference of logits that rounding explains where all weights are float32."""


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    run: Path
    folder: Path
    dtype: str | None
    max_shard_size: str
    adapters: str
    pad: bool
    gguf: Path | None
    push: str | None
    checkpoint: Path | None
    verify: bool


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in our one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"export: expected adapruner export RUN DIR [options], got {message}; see adapruner export --help")


def make_parser() -> argparse.ArgumentParser:
    """The command's own options."""
    parser = _Parser(
        prog="adapruner export",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run, or an export")
    add("folder", metavar="DIR", help="where to: new, empty, or an earlier export")
    add("--dtype", metavar="TYPE", help="float32, bfloat16 or float16 (default: as trained)")
    add("--max_shard_size", metavar="SIZE", default="5GB", help="of one safetensors file (default: 5GB)")
    add("--adapters", metavar="HOW", default="merged", help="merged into the weights (default), or in a folder of their own, DIR/adapter")
    add("--pad", action="store_true", help="widen every layer with zeros to the widest, for engines that know only stock classes")
    add("--gguf", metavar="FILE", help="write the model for llama.cpp, too")
    add("--push", metavar="REPO_ID", help="upload DIR to the hub, as user/name; a new repository is private")
    add("--checkpoint", metavar="FILE", help="the Lightning checkpoint to take (default: the last one of the run)")
    add("--verify", action=argparse.BooleanOptionalAction, default=True, help="load DIR in a fresh process and compare logits (default)")
    return parser


def run_export(arguments: Sequence[str], open_base: Any) -> int:
    """The whole command; 0.

    Args:
        arguments: behind ``export``.
        open_base: opens the base model, see :data:`adapruner.export.rebuilding.OpenBase`.

    Raises:
        ConfigurationError: for arguments that cannot work, before anything is loaded.
        PlanError: if the plan was changed or is for another model.
        ModelError: if weights are damaged or do not fit, or what was written computes something else.
    """
    options = read_options(arguments)
    from adapruner.export.staging import check_parent, check_place

    check_place(options.folder)
    if options.folder.resolve() in (options.run.resolve(), (options.run / "model").resolve()):
        raise ConfigurationError(f"folder: expected another folder than what is exported, got {options.folder}; choose another")
    if options.gguf is not None:
        from adapruner.export.gguf import check_gguf

        check_parent(options.gguf, "gguf")
        check_gguf(options.gguf, options.dtype)
    if options.push is not None:
        from adapruner.export.push import check_push

        check_push(options.push)
    from adapruner.export.writing import write_source

    written = write_source(options, open_base)
    print(f"adapruner: exported {written.class_name} to {options.folder}")
    for line in written.lines:
        print(f"adapruner: {line}")
    if options.push is not None:
        _push(options, written.plan_hash)
    return 0


def read_options(arguments: Sequence[str]) -> Options:
    """The options, checked as far as that goes without looking at a file.

    Raises:
        ConfigurationError: if one is unknown, missing or out of range, or contradicts another.
    """
    given = make_parser().parse_args(list(arguments))
    check_options(given.dtype, given.max_shard_size, given.adapters)
    for name in ("gguf", "pad"):
        if getattr(given, name) and given.adapters == "folder":
            raise ConfigurationError(f"{name}: expected adapters merged, got --adapters folder; leave one of the two out")
    return Options(
        run=Path(given.run),
        folder=Path(os.path.abspath(given.folder)),
        dtype=given.dtype,
        max_shard_size=given.max_shard_size,
        adapters=given.adapters,
        pad=given.pad,
        gguf=None if given.gguf is None else Path(given.gguf),
        push=given.push,
        checkpoint=None if given.checkpoint is None else Path(given.checkpoint),
        verify=given.verify,
    )


def check_difference(difference: float, exact: bool) -> None:
    """Refuses an export that computes something else.

    Raises:
        ModelError: if a logit is not finite, or differs by more than rounding where nothing was rounded (``exact``).
    """
    if difference == float("inf") or (exact and difference > _TOLERANCE):
        raise ModelError(f"export: expected the logits of the model, got a largest difference of {difference:.1e}; report this")


def _push(options: Options, plan_hash: str) -> None:
    from adapruner.export.push import push_folder

    assert options.push is not None
    url = push_folder(options.folder, options.push, f"Pruned model, plan {plan_hash}")
    print(f"adapruner: pushed to {url}")
