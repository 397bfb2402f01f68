"""Writes the final model as a folder that loads elsewhere, and checks in another process that it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from adapruner.callbacks.progress import announce
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.errors import ConfigurationError
from adapruner.export.folder import ExportRecord, check_folder, export_model


class PrunedExportCallback(Callback):
    """Exports at the end of ``fit``, after the adapters are merged.

    Args:
        folder: where to; ``model`` in the run folder when empty. An earlier export there is replaced.
        dtype: ``float32``, ``bfloat16`` or ``float16``; the model's own when empty.
        max_shard_size: of one safetensors file.
        verify: load the folder in a fresh process and compare logits.
    """

    def __init__(self, folder: str | None = None, dtype: str | None = None, max_shard_size: str = "5GB", verify: bool = True) -> None:
        super().__init__()
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigurationError(f"export.dtype: expected float32, bfloat16 or float16, got {dtype!r}; name one of them")
        self.folder_name, self.dtype, self.max_shard_size, self.verify = folder, dtype, max_shard_size, verify
        self.record: ExportRecord | None = None
        self.difference: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer without a search."""
        if stage == "fit":
            self.check_before_search(trainer)

    def check_before_search(self, trainer: Trainer) -> None:
        """A folder that cannot be used is refused before the hours of work, not after; the search calls this first."""
        check_folder(self._folder(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes and checks the folder."""
        pruning = self._pruning(trainer)
        if pruning.plan is None or pruning.anatomy is None or not trainer.is_global_zero:
            return
        from adapruner.export.verification import verify_export

        model: Any = getattr(pl_module, pruning.model_attribute)
        folder = self._folder(trainer)
        self.record = export_model(
            model,
            getattr(pl_module, "tokenizer", None),
            pruning.anatomy,
            pruning.plan,
            folder,
            dtype=self.dtype,
            max_shard_size=self.max_shard_size,
        )
        announce(f"exported {self.record.class_name} to {folder}")
        if self.verify:
            announce("loads the export in a fresh process and compares logits")
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            ids = data.search_windows.input_ids[:1, :64] if data is not None else torch.arange(1, 33)[None]
            self.difference = verify_export(folder, model, ids)

    def to_report(self) -> dict[str, Any] | None:
        """The report's ``export`` section; ``None`` before the export."""
        if self.record is None:
            return None
        return {
            "path": str(self.record.path),
            "class": self.record.class_name,
            "stock": self.record.stock,
            "max_abs_logit_difference": self.difference,
            "notes": list(self.record.notes),
        }

    def _folder(self, trainer: Trainer) -> Path:
        if self.folder_name:
            return Path(self.folder_name)
        return Path(self._pruning(trainer).folder_name or trainer.default_root_dir) / "model"

    def _pruning(self, trainer: Trainer) -> PruningSearchCallback:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        found = next((c for c in callbacks if isinstance(c, PruningSearchCallback)), None)
        if found is None:
            raise ConfigurationError("trainer.callbacks: expected a PruningSearchCallback beside PrunedExportCallback, got none; add one")
        return found
