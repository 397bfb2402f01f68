"""From the source of an export to the finished folder: the work of ``adapruner export``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adapruner.errors import ConfigurationError
from adapruner.export.adapters import ADAPTER_FOLDER, attach_adapter, difference_apart, export_either, has_adapters, without_adapters
from adapruner.export.card import written_in
from adapruner.export.command import Options, check_difference
from adapruner.export.licence import base_licence
from adapruner.export.rebuilding import LORA_KEY, OpenBase, rebuild
from adapruner.export.reexport import is_stock, open_export, reexport_model, write_padded
from adapruner.export.run_folder import Source, find_source
from adapruner.export.staging import staged
from adapruner.export.verification import verify_export
from adapruner.recovery.lora import merge_lora


@dataclass
class Written:
    """What was done, for the user."""

    class_name: str
    plan_hash: str
    lines: list[str] = field(default_factory=list)


def write_source(options: Options, open_base: OpenBase) -> Written:
    """Finds what to export, writes it beside its place, checks it there and moves it in.

    Raises:
        ConfigurationError, PlanError, ModelError: see :func:`adapruner.export.command.run_export`.
    """
    _quiet()
    source = find_source(options.run, options.checkpoint, options.adapters)
    print(f"adapruner: takes {source.words}", flush=True)
    with staged(options.folder) as folder:
        model, written = (_from_export if source.exported else _from_checkpoint)(source, options, folder, open_base)
        if options.verify:
            written.lines.append(_verified(folder, model, options))
        if options.gguf is not None:
            from adapruner.export.gguf import write_gguf

            record = write_gguf(folder, options.gguf, options.dtype)
            written.lines += [f"wrote {options.gguf} for llama.cpp, {record.architecture} in {record.dtype}", *record.notes]
    return written


def _from_checkpoint(source: Source, options: Options, folder: Path, open_base: OpenBase) -> tuple[Any, Written]:
    assert source.base is not None
    assert source.record is not None
    if options.adapters == "folder" and LORA_KEY not in source.record:
        raise ConfigurationError("adapters: expected a run with LoRA recovery, got a checkpoint without adapters; leave the option out")
    module = rebuild(source.base, source.plan, source.record, open_base)
    revision = source.base["revision"]
    card = {**base_licence(module.source, revision), "revision": revision, **source.card, **written_in(options.dtype, source.card)}
    model = module.model if options.adapters == "folder" else merge_lora(module.model)
    sizes = {"dtype": options.dtype, "max_shard_size": options.max_shard_size, "pad": options.pad}
    _, record = export_either(model, module.tokenizer, module.structure, source.plan, folder, card=card, **sizes)
    return model, Written(record.class_name, source.plan.hash, list(record.notes))


def _from_export(source: Source, options: Options, folder: Path, open_base: OpenBase) -> tuple[Any, Written]:
    assert source.exported is not None
    apart = options.adapters == "folder"
    model = open_export(source.exported, options.dtype, merge=not apart)
    if options.pad and not is_stock(source.exported):
        record = write_padded(model, source.exported, source.plan, folder, options, source.card)
        return model, Written(record.class_name, source.plan.hash, list(record.notes))
    name = reexport_model(model, source.exported, source.plan, folder, options, source.card)
    return model, Written(name, source.plan.hash)


def _verified(folder: Path, model: Any, options: Options) -> str:
    """Compares logits of a few tokens with those of a fresh process, and says how far they are apart."""
    exact = all(p.dtype == torch.float32 for p in model.parameters()) and options.dtype in (None, "float32")
    ids = torch.arange(1, 33)[None] % model.config.vocab_size
    difference = verify_export(folder, without_adapters(model) if has_adapters(model) else model, ids)
    if options.adapters == "folder":
        adapted = model if has_adapters(model) else attach_adapter(model, folder / ADAPTER_FOLDER)
        difference = max(difference, difference_apart(folder, adapted, ids))
    check_difference(difference, exact)
    rounding = "" if exact else ", rounding of the weights included"
    return f"loads in a fresh process; largest logit difference {difference:.1e}{rounding}"


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
