"""Which text, and which layer, a loss or a gradient that is no number comes from: looked for once it has happened."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from adapruner.errors import ModelError
from adapruner.importance.finiteness import find_bad_gradient, find_bad_loss

#: Tokens of a text that are quoted.
_QUOTED = 12


def blame_for_loss(trainer: Trainer, pl_module: LightningModule, model: nn.Module, batch: Any, batch_idx: int) -> str:
    """``, on sample 3 of batch 7 ('...'), not finite from LAYER on``; nothing where no sample shows it alone."""
    if not _can_look(trainer, batch):
        return ""
    with trainer.precision_plugin.forward_context():
        found = find_bad_loss(model, batch)
    if found is None:
        return ""
    row, layer = found
    return f", on {_sample(trainer, pl_module, batch, batch_idx, row)}, not finite from {_plain(layer)} on"


def blame_for_gradient(
    trainer: Trainer, pl_module: LightningModule, model: nn.Module, batch: Any, batch_idx: int, parameter: nn.Parameter
) -> str:
    """``, from sample 3 of batch 7 ('...')``; nothing where no sample of this batch shows it alone."""
    if not _can_look(trainer, batch):
        return ""
    with trainer.precision_plugin.forward_context(), torch.enable_grad():
        row = find_bad_gradient(model, batch, parameter)
    return "" if row is None else f", from {_sample(trainer, pl_module, batch, batch_idx, row)}"


def _can_look(trainer: Trainer, batch: Any) -> bool:
    """A forward of a sharded model is a step of all ranks, and only one may have met the sample."""
    known = isinstance(batch, Mapping) and all(name in batch for name in ("input_ids", "labels", "attention_mask"))
    return known and not isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)


def _sample(trainer: Trainer, pl_module: LightningModule, batch: Mapping[str, torch.Tensor], batch_idx: int, row: int) -> str:
    where = f"sample {row} of batch {batch_idx}" + (f" of rank {trainer.global_rank}" if trainer.world_size > 1 else "")
    tokenizer: Any = None
    with suppress(ModelError):  # a model without one trains all the same
        tokenizer = getattr(pl_module, "tokenizer", None)
    if tokenizer is None:
        return where
    words = " ".join(tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()][:_QUOTED].tolist()).split())
    return f"{where} ({words + ' ...'!r})"


def _plain(layer: str) -> str:
    """A layer's name in the model itself, without the wrapping of adapters."""
    return layer.removeprefix("base_model.model.").replace(".base_layer", "")
