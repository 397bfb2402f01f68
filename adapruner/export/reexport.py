"""Writes an export again: another precision, other shards, adapters merged. The base model is not needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from adapruner.errors import ModelError
from adapruner.export.adapters import ADAPTER_FILES, ADAPTER_FOLDER, attach_adapter
from adapruner.export.card import model_card, written_in
from adapruner.export.command import Options
from adapruner.export.folder import PLAN_FILE, ExportRecord, copy_tokenizer, export_model
from adapruner.export.licence import base_licence
from adapruner.export.loading import load
from adapruner.export.target import make_config
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import trace_for_plan
from adapruner.recovery.lora import merge_lora


def open_export(folder: Path, dtype: str | None, merge: bool) -> Any:
    """The model of an export, by :func:`adapruner.export.loading.load`; its adapters merged if asked for and there are any.

    Args:
        folder: the export.
        dtype: what the weights become; None leaves them.
        merge: whether adapters that were kept apart are added to the weights, at the precision they are stored in.

    Raises:
        ModelError: if the folder is damaged, or a weight is beyond the range of ``dtype``.
    """
    model = load(folder)
    if merge and (folder / ADAPTER_FOLDER).is_dir():
        model = merge_lora(attach_adapter(model, folder / ADAPTER_FOLDER)).eval()
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
        _check_range(model, dtype)
    return model


def reexport_model(model: Any, source: Path, plan: PruningPlan, folder: Path, options: Options, card: dict[str, Any]) -> str:
    """Fills a new folder with the model; tokenizer, adapters and card come from the export it was. Returns the class's name.

    The model card is kept, unless adapters that it tells of were merged, or there is none: then ``card`` is for a new one.
    """
    model.save_pretrained(folder, max_shard_size=options.max_shard_size)
    plan.save(folder / PLAN_FILE)
    copy_tokenizer(source, folder)
    adapters, apart = source / ADAPTER_FOLDER, options.adapters == "folder"
    if apart:
        (folder / ADAPTER_FOLDER).mkdir()
        for name in ADAPTER_FILES:
            shutil.copyfile(adapters / name, folder / ADAPTER_FOLDER / name)
    name, readme = type(model).__name__, source / "README.md"
    if readme.is_file() and (apart or not adapters.is_dir()):
        text = readme.read_text(encoding="utf-8")
        text += f"\nWritten again in {options.dtype}, after these measurements.\n" if options.dtype and "## Measured" in text else ""
    else:
        text = model_card(plan, class_name=name, stock=is_stock(folder), notes=[], card={**card, **written_in(options.dtype, card)})
    (folder / "README.md").write_text(text, encoding="utf-8")
    return name


def write_padded(model: Any, source: Path, plan: PruningPlan, folder: Path, options: Options, card: dict[str, Any]) -> ExportRecord:
    """The same with every layer at the width of the widest; the model card is a new one.

    Raises:
        PlanError, ModelError: see :func:`adapruner.export.folder.export_model`.
    """
    card = {**base_licence(str(source)), **card, **written_in(options.dtype, card)}
    structure = _dense_structure(model, plan)
    return export_model(model, source, structure, plan, folder, max_shard_size=options.max_shard_size, card=card, pad=True)


def is_stock(folder: Path) -> bool:
    """Whether a class of ``transformers`` reads an export."""
    return "auto_map" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _dense_structure(model: Any, plan: PruningPlan) -> ModelStructure:
    """Of the model before pruning: an export whose layers differ keeps the dense widths in its configuration.

    Raises:
        ModelError: if layers or hidden channels were removed: the folder does not say how many there were.
    """
    if plan.cuts_depth_or_width:
        raise ModelError("pad: expected an export that has all its layers and hidden channels, got one without some; export from the run")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(make_config(model, model.config.model_type, {}))
    return trace_for_plan(dense, plan)


def _check_range(model: Any, dtype: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"dtype: expected weights within the range of {dtype}, got larger ones in {name}; use bfloat16")
