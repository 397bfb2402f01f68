"""Writes a pruned model as a folder that ``transformers`` loads by itself.

Where all layers are equally wide a stock class reads it; otherwise one modelling file goes along.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapruner.argument_checks import typed
from adapruner.errors import ConfigurationError, ModelError, nearest
from adapruner.export.card import model_card
from adapruner.export.licence import is_hub_name
from adapruner.export.options import DTYPES, ExportOptions
from adapruner.export.padding import pad_to_uniform
from adapruner.export.quantising import group_notes
from adapruner.export.staging import check_folder, staged
from adapruner.export.target import Target, choose_target, has_uneven_experts
from adapruner.export.widths import check_widths
from adapruner.models.families import family_of
from adapruner.models.gguf_input import QUANTISED_BASE
from adapruner.models.rotary import restore_rotary
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure, count_parameters
from adapruner.pruning.depth_and_width import remaining_structure, restrict_plan
from adapruner.pruning.plan import MARK, PruningPlan

PLAN_FILE = "plan.json"
#: What a tokenizer may consist of. No modelling code and no pickle is ever copied.
_TOKENIZER_SUFFIXES = (".json", ".txt", ".jinja", ".tiktoken", ".spm")
_TOKENIZER_NAMES = ("tokenizer.model", "sentencepiece.bpe.model")


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Generation settings without effect unless ``do_sample`` is true."""


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

    def to_report(self, compared: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The report's section on the export.

        Args:
            compared: :meth:`adapruner.export.verification.Verification.to_report`, where a fresh process has loaded it.
        """
        found = {"path": str(self.path), "class": self.class_name, "stock": self.stock, "notes": list(self.notes)}
        return {**found, "max_abs_logit_difference": None, **(compared or {})}


@typed
def export_model(
    model: Any,
    tokenizer: Any,
    structure: ModelStructure | None,
    plan: PruningPlan,
    folder: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    card: dict[str, Any] | None = None,
    pad: bool = False,
) -> ExportRecord:
    """Writes weights (safetensors), configuration, tokenizer, ``plan.json``, a model card and ``SHA256SUMS`` of them all.

    Everything is written beside ``folder`` and moved into place at the end. An earlier export is replaced as a whole.

    Args:
        model: a Hugging Face causal LM, already pruned by ``plan``, adapters merged.
        tokenizer: saved along; of a folder, as a ``Path``, its files are copied; None leaves it out, and notes and card say so.
        structure: of the model before pruning; ``None`` where it is not known, of an export that was loaded: its widths are believed.
        plan: what the model was pruned by.
        folder: where to; new, empty, or an earlier export.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps the model's.
        max_shard_size: of one safetensors file, such as ``"5GB"``.
        card: for the model card, see :func:`adapruner.export.card.model_card`.
        pad: zeros widen every layer to the widest, so that a stock class can hold them; see :mod:`adapruner.export.padding`.

    Raises:
        ConfigurationError: if the folder holds something else or cannot be written, or the dtype is unknown.
        PlanError: if the plan is for another model.
        ModelError: if the model is not at the plan's widths, has other biases on its output projections than the plan and
            the family give it, or it does not fit the dtype.
    """
    check_folder(folder)
    if isinstance(max_shard_size, str):
        ExportOptions(max_shard_size=max_shard_size)  # refuses what is no size
    if dtype is not None and dtype not in DTYPES:
        raise ConfigurationError(f"dtype: expected the name of a floating point type, got {dtype!r}; {nearest(dtype, DTYPES)}")
    target = _choose(model, structure, plan, pad)
    filled, notes = target.model, target.notes
    setattr(filled.config, MARK, {"plan_hash": plan.hash})
    filled.load_state_dict(target.state, strict=True, assign=True)
    filled.tie_weights()
    cast_weights(filled, dtype)
    notes += _carry_generation_config(model, filled) + group_notes(filled)
    if (quantised := getattr(model.config, QUANTISED_BASE, None)) is not None:
        notes.append(f"the base model's weights were quantised, and dequantised from {quantised} before the pruning")
    class_name = type(filled).__name__
    with staged(Path(folder)) as new:
        filled.save_pretrained(new, max_shard_size=max_shard_size)
        notes += _save_tokenizer(tokenizer, new)
        _without_path(plan).save(new / PLAN_FILE)
        text = model_card(plan, class_name=class_name, stock=target.stock, notes=notes, card=card)
        (new / "README.md").write_text(text, encoding="utf-8")
    return ExportRecord(Path(folder), class_name, target.stock, notes, list_files(Path(folder)))


def list_files(folder: Path) -> list[str]:
    """Sorted names of the files inside, of those in folders with their path."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def cast_weights(model: Any, dtype: str | None) -> None:
    """Puts a model's weights into another precision, in place; ``None`` leaves them as they are.

    Raises:
        ModelError: if a value does not fit it.
    """
    if dtype is None:
        return
    model.to(getattr(torch, dtype))
    restore_rotary(model)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"dtype: expected weights within the range of {dtype}, got larger ones in {name}; use bfloat16")


def copy_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copies the tokenizer's files of another export as they are; returns their names."""
    copied = []
    for file in sorted(source.iterdir()):
        carried = file.name in _TOKENIZER_NAMES or file.suffix in _TOKENIZER_SUFFIXES
        if carried and file.is_file() and not (folder / file.name).exists() and not file.name.startswith("model.safetensors"):
            shutil.copyfile(file, folder / file.name)
            copied.append(file.name)
    return copied


def _choose(model: Any, structure: ModelStructure | None, plan: PruningPlan, pad: bool) -> Target:
    """The class that will hold the pruned model's tensors, after a check that it has the plan's widths."""
    if structure is None:
        left = trace_structure(model)
    else:
        family_of(structure.model_type).linear_form(model)
        plan.check(structure)
        units = plan
        if plan.cuts_depth_or_width:  # from here on layers are numbered as in the pruned model
            structure = remaining_structure(structure, plan)
            units = restrict_plan(plan, structure)
        check_widths(model, structure, units)
        left = structure.after(units.kept)
    output_bias = plan.output_bias or all(group.added_bias for group in left.groups)
    padded, left = pad_to_uniform(model, left, output_bias) if pad else (model, left)
    target = choose_target(padded, left, output_bias)
    zeros = count_parameters(padded) - count_parameters(model)
    if zeros:
        target.notes.append(f"padded with zeros to the widest layer: {zeros} parameters of the file are zeros")
    if has_uneven_experts(target.model.config):
        target.notes.append(
            "experts have widths that are no multiples of 8: loading needs experts_implementation='eager', or adapruner.load"
        )
    return target


def _without_path(plan: PruningPlan) -> PruningPlan:
    """The plan with only the last part of a path on someone's disk; the base model's name is not part of the hash."""
    name = str(plan.model.get("name") or "")
    return plan if is_hub_name(name) else replace(plan, model={**plan.model, "name": Path(name).name})


def _carry_generation_config(model: Any, target: Any) -> list[str]:
    """Copies the generation settings. Some released ones contradict themselves and could not be saved again: a greedy model's
    sampling settings have no effect, and are left out so that it stays greedy."""
    target.generation_config = settings = copy.deepcopy(model.generation_config)
    try:
        settings.validate(strict=True)
        return []
    except ValueError:
        stray = [name for name in _SAMPLING if getattr(settings, name, None) is not None] if not settings.do_sample else []
        for name in stray:
            setattr(settings, name, None)
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise ConfigurationError(
            f"generation_config: expected settings that can be saved, got {error}; mend model.generation_config"
        ) from None
    return [f"generation_config: {', '.join(stray)} left out, which has no effect on a model that does not sample"]


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
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if found(text)["input_ids"] == tokenizer(text)["input_ids"]:
            return []
        reason = f"AutoTokenizer reads it as {type(found).__name__}, which gives other tokens"
    except (ValueError, OSError, ImportError) as error:
        reason = f"AutoTokenizer cannot read it ({' '.join(str(error).split())})"
    return [f"tokenizer: {reason}; load it with {type(tokenizer).__name__}.from_pretrained"]
