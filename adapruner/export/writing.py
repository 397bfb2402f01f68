"""From what a run left to the finished export: the work of ``adapruner export``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.export.adapters import ADAPTER_FOLDER, attach_adapter, export_either, has_adapters
from adapruner.export.card import card_of_run
from adapruner.export.folder import ExportRecord
from adapruner.export.formats import FORMATS
from adapruner.export.options import ExportOptions
from adapruner.export.rebuilding import rebuild
from adapruner.export.reexport import reexport
from adapruner.export.run_folder import Source
from adapruner.export.staging import scratch_beside
from adapruner.export.verification import verify_export
from adapruner.models.forward import random_ids
from adapruner.models.loading import load_tokenizer, model_source
from adapruner.recovery.checkpoint_contents import LORA_KEY
from adapruner.recovery.merging import merge_lora


def write_export(
    source: Source, targets: Mapping[str, Path], options: ExportOptions, *, verify: bool = True
) -> tuple[ExportRecord, list[str]]:
    """Fills a scratch folder, checks it there, and writes every format from it.

    Args:
        source: what :func:`adapruner.export.run_folder.find_source` found.
        targets: name of a format -> where to; the last is the main one, beside which the scratch folder lies.
        options: how weights are written.
        verify: load the folder in a fresh process and compare logits.

    Returns:
        The record of the folder, and lines for the user: its notes, how far its logits are from the model's, what else was written.

    Raises:
        ConfigurationError, PlanError, ModelError: if a target cannot be written, the source is damaged or does not fit together, or
            the folder computes something else.
    """
    main, place = list(targets.items())[-1]
    with scratch_beside(place, place.name if main == "huggingface" else place.stem) as folder:
        model, record = (_from_export if source.exported else _from_checkpoint)(source, folder, options)
        lines = [*record.notes, *([_verified(folder, model, options)] if verify else [])]
        for name, target in targets.items():
            written = FORMATS.find(name).write(folder, target, options)
            lines += [f"wrote {written.path} {written.summary}", *written.notes] if name != "huggingface" else []
    return record, lines


def _from_checkpoint(source: Source, folder: Path, options: ExportOptions) -> tuple[Any, ExportRecord]:
    assert source.base is not None
    assert source.record is not None
    if options.adapters == "folder" and LORA_KEY not in source.record:
        raise ConfigurationError("adapters: expected a run with LoRA recovery, got a checkpoint without adapters; leave the option out")
    model, structure = rebuild(source.base, source.plan, source.record)
    name, revision = source.base["name_or_path"], source.base["revision"]
    card = card_of_run(model_source(name), source.card, revision=revision, dtype=options.dtype)
    model, tokenizer = model if options.adapters == "folder" else merge_lora(model), load_tokenizer(name, revision=revision)
    return model, export_either(model, tokenizer, structure, source.plan, folder, options, card)


def _from_export(source: Source, folder: Path, options: ExportOptions) -> tuple[Any, ExportRecord]:
    assert source.exported is not None
    return reexport(source.exported, folder, options, source.card)


def _verified(folder: Path, model: Any, options: ExportOptions) -> str:
    """Compares logits and perplexity of a few random tokens with those of a fresh process, and says how far they are apart."""
    ids = random_ids(model, 4, min(64, getattr(model.config, "max_position_embeddings", 64))).cpu()
    if options.adapters == "folder" and not has_adapters(model):
        model = attach_adapter(model, folder / ADAPTER_FOLDER)
    found = verify_export(folder, model, ids)
    found.check("the new folder")
    return found.in_words()
