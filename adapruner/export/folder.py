"""Writes a pruned model as a folder that ``transformers`` loads by itself.

Where all layers are equally wide a stock class reads it; otherwise one modelling file goes along.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner.errors import ConfigurationError, ModelError, nearest
from adapruner.export.card import model_card
from adapruner.export.expert_widths import has_uneven_experts
from adapruner.export.licence import is_hub_name
from adapruner.export.padding import pad_to_uniform
from adapruner.export.target import Target, choose_target, dense_twin, linear_twin
from adapruner.export.widths import check_widths
from adapruner.models.families import family_of
from adapruner.models.units import ModelStructure
from adapruner.pruning.depth_and_width import remaining_structure, restrict_plan
from adapruner.pruning.plan import PruningPlan

MARK = "adapruner"
"""Key in ``config.json`` by which an export is known as ours; holds the plan's hash."""
PLAN_FILE = "plan.json"
#: What a tokenizer may consist of. No modelling code and no pickle is ever copied.
_TOKENIZER_SUFFIXES = (".json", ".txt", ".jinja", ".tiktoken", ".spm")
_TOKENIZER_NAMES = ("tokenizer.model", "sentencepiece.bpe.model")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ExportRecord:
    """What was written."""

    path: Path
    class_name: str
    """The class in ``architectures``."""
    stock: bool
    """Whether a class of ``transformers`` reads the folder, without ``trust_remote_code``."""
    notes: list[str]
    """What a reader of the export should know."""
    files: list[str]
    """Sorted file names inside ``path``."""


def export_model(
    model: Any,
    tokenizer: Any,
    structure: ModelStructure,
    plan: PruningPlan,
    folder: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    card: dict[str, Any] | None = None,
    pad: bool = False,
) -> ExportRecord:
    """Writes weights (safetensors), configuration, tokenizer, ``plan.json`` and a model card.

    Everything is written beside ``folder`` and moved into place at the end. An earlier export is replaced as a whole.

    Args:
        model: a Hugging Face causal LM, already pruned by ``plan``, adapters merged.
        tokenizer: saved along; of a folder, as a ``Path``, its files are copied; None leaves it out, and notes and card say so.
        structure: of the dense model.
        plan: what the model was pruned by.
        folder: where to; new, empty, or an earlier export.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps the model's.
        max_shard_size: of one safetensors file, such as ``"5GB"``.
        card: for the model card, see :func:`adapruner.export.card.model_card`.
        pad: zeros widen every layer to the widest, so that a stock class can hold them; see :mod:`adapruner.export.padding`.

    Raises:
        ConfigurationError: if the folder holds something else, or the dtype is unknown.
        PlanError: if the plan is for another model.
        ModelError: if the model is not at the plan's widths, has other biases on its output projections than the plan and
            the family give it, or it does not fit the dtype.
    """
    folder = Path(folder)
    check_folder(folder)
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigurationError(f"dtype: expected the name of a floating point type, got {dtype!r}; {nearest(dtype, _DTYPES)}")
    family_of(structure.model_type).linear_form(model)
    plan.check(structure)
    whole = plan  # what is written; from here on layers are numbered as in the pruned model
    if plan.cuts_depth_or_width:
        structure = remaining_structure(structure, plan)
        plan = restrict_plan(plan, structure)
    check_widths(model, structure, plan, linear_twin(model, structure))
    padded, wide = pad_to_uniform(model, structure, plan) if pad else (model, plan)
    chosen = choose_target(padded, structure, wide, dense_twin(model, structure))
    if wide.kept != plan.kept:
        chosen.notes.append(f"padded with zeros to the widest layer: {_padding(structure, plan, wide)} parameters of the file are zeros")
    target, stock, notes = chosen.model, chosen.stock, chosen.notes
    if has_uneven_experts(target.config):
        notes.append("experts have widths that are no multiples of 8: loading needs experts_implementation='eager', or adapruner.load")
    setattr(target.config, MARK, {"plan_hash": whole.hash})
    _fill(chosen, _DTYPES.get(dtype or ""))
    notes += _carry_generation_config(model, target)
    class_name = type(target).__name__

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        target.save_pretrained(temporary, max_shard_size=max_shard_size)
        notes += _save_tokenizer(tokenizer, temporary)
        _without_path(whole).save(temporary / PLAN_FILE)
        (temporary / "README.md").write_text(
            model_card(whole, class_name=class_name, stock=stock, notes=notes, card=card), encoding="utf-8"
        )
        files = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportRecord(folder, class_name, stock, notes, files)


def check_folder(folder: str | Path) -> None:
    """Refuses a place that holds something other than an earlier export; a callback calls this before hours of work.

    Raises:
        ConfigurationError: if it does.
    """
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise ConfigurationError(f"folder: expected a folder, got the file {folder}; choose another name")
    if (folder / ".git").exists():  # replaced as a whole, it would lose its history
        raise ConfigurationError(f"folder: expected a plain folder, got the git repository {folder}; export elsewhere and copy")
    if not is_export(folder):
        raise ConfigurationError(
            f"folder: expected an empty folder or an earlier export, got other files in {folder}; choose another folder"
        )


def is_export(folder: Path) -> bool:
    """Whether ``config.json`` carries our mark."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and isinstance(config.get(MARK), dict)


def _without_path(plan: PruningPlan) -> PruningPlan:
    """Of a base model on someone's disk only the last part of its path goes along; the name is not part of the hash."""
    name = str(plan.model.get("name") or "")
    return plan if is_hub_name(name) else replace(plan, model={**plan.model, "name": Path(name).name})


def _padding(structure: ModelStructure, plan: PruningPlan, wide: PruningPlan) -> int:
    return sum((len(wide.kept[g.name]) - len(plan.kept[g.name])) * g.parameters_per_unit for g in structure.groups)


def _fill(chosen: Target, dtype: torch.dtype | None) -> None:
    """Gives the class the pruned model's tensors."""
    chosen.model.load_state_dict(_state(chosen.state, dtype), strict=True, assign=True)
    chosen.model.tie_weights()


def _state(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    if dtype is None:
        return state
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if dtype == torch.float16:
        for name, tensor in cast.items():
            if not torch.isfinite(tensor).all():
                raise ModelError(f"dtype: expected weights within the range of float16, got larger ones in {name}; use bfloat16")
    return cast


def _carry_generation_config(model: Any, target: Any) -> list[str]:
    """Copies the generation settings. Some released ones contradict themselves and could not be saved again."""
    target.generation_config = settings = copy.deepcopy(model.generation_config)
    try:
        settings.validate(strict=True)
        return []
    except ValueError:
        settings.do_sample = True  # the usual contradiction: a temperature without sampling
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise ConfigurationError(
            f"generation_config: expected settings that can be saved, got {error}; mend model.generation_config"
        ) from None
    return ["generation_config: do_sample set to true, as the sampling settings of the base model ask for"]


def copy_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copies the tokenizer's files of another export as they are; returns their names."""
    copied = []
    for file in sorted(source.iterdir()):
        carried = file.name in _TOKENIZER_NAMES or file.suffix in _TOKENIZER_SUFFIXES
        if carried and file.is_file() and not (folder / file.name).exists() and not file.name.startswith("model.safetensors"):
            shutil.copyfile(file, folder / file.name)
            copied.append(file.name)
    return copied


def _save_tokenizer(tokenizer: Any, folder: Path) -> list[str]:
    """AutoTokenizer goes by the model's family before it goes by what was saved, so what it makes of the folder is tried."""
    from transformers import AutoTokenizer

    if tokenizer is None or (isinstance(tokenizer, Path) and not any("token" in name for name in copy_tokenizer(tokenizer, folder))):
        return ["no tokenizer in this folder: take the base model's"]
    if isinstance(tokenizer, Path):
        return []
    tokenizer.save_pretrained(folder)
    text = "The lazy dog, naïve as ever, slept 42 hours.\n\tDéjà vu in 東京!"
    try:
        again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if again(text)["input_ids"] == tokenizer(text)["input_ids"]:
            return []
        reason = f"AutoTokenizer reads it as {type(again).__name__}, which gives other tokens"
    except (ValueError, OSError, ImportError) as error:
        reason = f"AutoTokenizer cannot read it ({' '.join(str(error).split())})"
    return [f"tokenizer: {reason}; load it with {type(tokenizer).__name__}.from_pretrained"]


def _move_into_place(temporary: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.replace(old)
    try:
        temporary.replace(folder)
    except OSError:
        if old.exists():
            old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
