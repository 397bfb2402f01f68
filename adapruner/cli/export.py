"""``adapruner export``: writes the model of a run as a folder, or a file, that loads elsewhere."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from adapruner.cli.one_line_parser import OneLineParser
from adapruner.errors import ConfigurationError
from adapruner.export.options import ExportOptions
from adapruner.progress import announce

_DESCRIPTION = """\
Write the pruned model of a run as a Hugging Face folder: safetensors, configuration, tokenizer, plan and model card.

RUN is a folder that fit wrote into. The model is built again from the base model, the plan and the last checkpoint; the
finished model/ in the folder serves where the checkpoints end before it, or there are none. RUN may also be an exported
folder itself. Checkpoints are read without running code in them, and a plan, a base model or weights that do not belong
together are an error. DIR is written as a whole or not at all; an earlier export there is replaced.
"""
_EPILOG = """\
examples:
  adapruner export runs/llama out/llama-pruned --dtype bfloat16 --max_shard_size 2GB
  adapruner export runs/llama out/llama-pruned --adapters folder        # the LoRA recovery in out/llama-pruned/adapter
  adapruner export runs/llama/model out/half --dtype float16            # no base model and no checkpoint needed
  adapruner export runs/llama out/llama-pruned --push me/llama-pruned
  adapruner export runs/llama out/llama.gguf --format gguf              # the file alone
  adapruner export runs/llama out/deci --format deci                    # irregular widths for vLLM's DeciLM
"""
_FOLDER = "huggingface"


def make_parser() -> argparse.ArgumentParser:
    """The command's own options."""
    parser = OneLineParser("export", "RUN DIR [options]", description=_DESCRIPTION, epilog=_EPILOG)
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run, or an export")
    add("folder", metavar="DIR", type=lambda name: Path(os.path.abspath(name)), help="where to: new, empty, or an earlier export")
    add("--format", metavar="NAME", default=_FOLDER, help="what to write to DIR: huggingface (default), gguf, deci, or one of your own")
    add("--dtype", metavar="TYPE", help="float32, bfloat16 or float16 (default: as trained)")
    add("--max_shard_size", metavar="SIZE", default="5GB", help="of one safetensors file (default: 5GB)")
    add("--adapters", metavar="HOW", default="merged", help="merged into the weights (default), or in a folder of their own, DIR/adapter")
    add("--pad", action="store_true", help="widen every layer with zeros to the widest, for engines that know only stock classes")
    add("--gguf", metavar="FILE", type=Path, help="write the model for llama.cpp, too")
    add("--push", metavar="REPO_ID", help="upload DIR to the hub, as user/name; a new repository is private")
    add("--checkpoint", metavar="FILE", type=Path, help="the Lightning checkpoint to take (default: the last one of the run)")
    add("--model", metavar="PATH", help="the base model, a folder or a hub name (default: where the run found it)")
    add("--import", metavar="FILE", help="export formats and the like of your own; may be repeated")
    add("--verify", action=argparse.BooleanOptionalAction, default=True, help="load DIR in a fresh process and compare logits (default)")
    return parser


def run_export(arguments: Sequence[str]) -> None:
    """The whole command.

    Args:
        arguments: behind ``export``.

    Raises:
        ConfigurationError: for arguments that cannot work, before anything is loaded.
        PlanError: if the plan was changed or is for another model.
        ModelError: if weights are damaged or do not fit, or what was written computes something else.
    """
    given = make_parser().parse_args(list(arguments))
    options = ExportOptions(given.dtype, given.max_shard_size, given.adapters, given.pad)
    run, targets = Path(given.run), _check(given, options)
    from adapruner.cli.quiet import quiet_libraries
    from adapruner.export import writing
    from adapruner.export.run_folder import find_source

    quiet_libraries()
    source = find_source(run, given.checkpoint, options.adapters, given.model)
    if given.model is not None and source.base is None:
        raise ConfigurationError(f"model: expected a run whose base model is needed, got {source.words}; leave it out")
    announce(f"takes {source.words}")
    record, lines = writing.write_export(source, targets, options, verify=given.verify)
    if _FOLDER in targets:
        lines.insert(0, f"exported {record.class_name} to {given.folder}")
    for line in lines:
        announce(line)
    if given.push is not None:
        from adapruner.export.push import push_folder

        url = push_folder(given.folder, given.push, f"Pruned model, plan {source.plan.hash}")
        announce(f"pushed to {url}")


def _check(given: argparse.Namespace, options: ExportOptions) -> dict[str, Path]:
    """What is to be written where, the main one last; refuses what cannot work before any work.

    Raises:
        ConfigurationError: in these cases.
    """
    for name, asked in (("gguf", given.gguf), ("format", given.format != _FOLDER)):
        if asked and options.adapters == "folder":
            raise ConfigurationError(f"{name}: expected adapters merged, got --adapters folder; leave one of the two out")
    if given.gguf is not None and given.format == "gguf":
        raise ConfigurationError("gguf: expected one file, got --format gguf, too; leave one of the two out")
    if given.push is not None and given.format != _FOLDER:
        raise ConfigurationError(f"push: expected a folder to upload, got --format {given.format}; leave one of the two out")
    from adapruner.export.formats import FORMATS
    from adapruner.export.staging import check_parent

    targets = {**({} if given.gguf is None else {"gguf": given.gguf}), given.format: given.folder}
    for name, target in targets.items():
        format_of = FORMATS.find(name, "format")
        check_parent(target, "folder" if target is given.folder else name)
        format_of.check(target, options)
        if name not in (_FOLDER, "gguf") and os.path.lexists(target) and not getattr(format_of, "is_own", lambda _: False)(target):
            raise ConfigurationError(f"folder: expected a new name for the format {name}, got {target}, which is there; choose another")
    if given.folder in (Path(given.run).resolve(), (Path(given.run) / "model").resolve()):
        raise ConfigurationError(f"folder: expected another folder than what is exported, got {given.folder}; choose another")
    if given.push is not None:
        from adapruner.export.push import check_push

        check_push(given.push)
    return targets
