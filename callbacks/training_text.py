"""The text that a Trainer's ``fit`` trains on: batch by batch, and as windows that are read before."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Trainer
from torch.utils.data import DataLoader, IterableDataset

from adapruner.errors import DataError


def training_windows(trainer: Trainer) -> Any:
    """The text that ``fit`` trains on: the data module's, else what its batches hold, which must be of one length."""
    known = getattr(getattr(trainer, "datamodule", None), "recovery_windows", None)
    if known is not None:
        return known
    batches = list(_each_once(training_batches(trainer)))
    lengths = {batch["input_ids"].shape[1] for batch in batches}
    if len(lengths) != 1:
        raise DataError(f"recovery.distillation: expected training windows of one length, got {sorted(lengths)}; pad them alike")
    ids, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input_ids", "labels"))
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches]
    return SimpleNamespace(input_ids=ids, labels=labels, attention_mask=torch.cat(masks))


def _each_once(batches: Iterable[Any]) -> Iterable[Any]:
    """A loader's whole data set in its own order, whatever the loader draws from it in an epoch."""
    if not isinstance(batches, DataLoader):
        return batches
    if isinstance(batches.dataset, IterableDataset):
        raise DataError(
            "recovery.distillation: expected training text that can be read before it is trained on, got an IterableDataset; "
            "give a data set with a length, or distil nothing (weight 0)"
        )
    return DataLoader(batches.dataset, batch_size=batches.batch_size or 1, collate_fn=batches.collate_fn)


def training_batches(trainer: Trainer) -> Iterable[Any]:
    """What ``fit`` trains on: the data module's loader, or the one that ``fit`` was given."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is not None:
        return data.train_dataloader()  # type: ignore[no-any-return]
    return trainer.fit_loop._data_source.dataloader()  # type: ignore[no-any-return]
