"""Writes an export once more: another precision, other shards, adapters merged. The base model is not needed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from adapruner.export.adapters import ADAPTER_FILES, ADAPTER_FOLDER
from adapruner.export.card import card_of_run, model_card, written_in
from adapruner.export.folder import PLAN_FILE, ExportRecord, cast_weights, copy_tokenizer, export_model, list_files
from adapruner.export.loading import ExportedModel, check_whole, open_export, read_config
from adapruner.export.options import ExportOptions
from adapruner.export.quantising import group_notes


def reexport(source: Path, folder: Path, options: ExportOptions, card: dict[str, Any]) -> tuple[Any, ExportRecord]:
    """Fills a new folder with the model of an export; tokenizer, adapters and, as far as they still hold, card come from there.

    Args:
        source: the export; adapters that it keeps apart are merged, at the precision they are stored in, unless ``options`` says
            to keep them apart.
        folder: a scratch place.
        options: what the weights become.
        card: for a new model card. The old one is kept unless layers are padded, adapters that it describes are merged, or there is none.

    Returns:
        The model as it was written, but for padding, and the record.

    Raises:
        ModelError: if the source is damaged, or a weight is beyond the range of the dtype.
    """
    exported = open_export(source, merge=options.adapters == "merged")
    assert exported is not None
    cast_weights(exported.model, options.dtype)
    if options.pad and not is_stock(source):
        return exported.model, _padded(exported, source, folder, options, card)
    return exported.model, _as_it_is(exported, source, folder, options, card)


def is_stock(folder: Path) -> bool:
    """Whether a class of ``transformers`` reads an export."""
    return "auto_map" not in read_config(folder)


def _as_it_is(exported: ExportedModel, source: Path, folder: Path, options: ExportOptions, card: dict[str, Any]) -> ExportRecord:
    type(exported.model).save_pretrained(exported.model, folder, max_shard_size=options.max_shard_size)
    assert exported.plan is not None  # it was read before
    exported.plan.save(folder / PLAN_FILE)
    copy_tokenizer(source, folder)
    adapters, apart = source / ADAPTER_FOLDER, options.adapters == "folder"
    if apart:
        (folder / ADAPTER_FOLDER).mkdir()
        for name in ADAPTER_FILES:
            shutil.copyfile(adapters / name, folder / ADAPTER_FOLDER / name)
    name, readme, stock = type(exported.model).__name__, source / "README.md", is_stock(folder)
    odd = group_notes(exported.model)
    notes = [*odd, *(f"{changed} was changed after the export: taken along as it is" for changed in check_whole(source))]
    if readme.is_file() and (apart or not adapters.is_dir()):
        text = readme.read_text(encoding="utf-8", errors="replace")
        text += f"\nWritten again in {options.dtype}, after these measurements.\n" if options.dtype and "## Measured" in text else ""
    else:
        notes, card = odd, {**card, **written_in(options.dtype, card)}
        text = model_card(exported.plan, class_name=name, stock=stock, notes=odd, card=card)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return ExportRecord(folder, name, stock, notes, list_files(folder))


def _padded(exported: ExportedModel, source: Path, folder: Path, options: ExportOptions, card: dict[str, Any]) -> ExportRecord:
    card = card_of_run(str(source), card, dtype=options.dtype)
    sizes = options.max_shard_size
    assert exported.plan is not None
    return export_model(exported.model, source, None, exported.plan, folder, max_shard_size=sizes, card=card, pad=True)
