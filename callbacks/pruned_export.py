"""Writes the final model as a folder that loads elsewhere, and checks in another process that it does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.listener import PruningListener, first_of
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.errors import ConfigurationError
from adapruner.export.adapters import ADAPTER_FOLDER, export_either
from adapruner.export.card import card_of_report, model_card, written_in
from adapruner.export.folder import ExportRecord, export_model
from adapruner.export.licence import base_licence
from adapruner.export.options import ExportOptions
from adapruner.export.staging import check_folder, staged
from adapruner.files.atomic import write_atomically
from adapruner.models.model_attribute import held_model
from adapruner.progress import announce


class PrunedExportCallback(PruningListener):
    """Exports at the end of ``fit``, after the adapters are merged.

    The model card tells what the run measured: put it behind :class:`CompressionReportCallback` in the list.

    Args:
        folder: where to; ``model`` in the run folder when empty. An earlier export there is replaced.
        dtype: ``float32``, ``bfloat16`` or ``float16``; the model's own when empty.
        max_shard_size: of one safetensors file.
        verify: load the folder in a fresh process and compare logits.
        adapters: ``merged`` into the weights, or the LoRA recovery in a ``folder`` of its own, ``adapter`` in the export.
        pad: widen every layer with zeros to the widest, for engines that know only stock classes.
        push: upload the folder to the hub under this name, ``user/model``, at the very end. A new repository is private.

    >>> PrunedExportCallback(dtype="bfloat16").dtype
    'bfloat16'
    """

    def __init__(
        self,
        folder: str | None = None,
        dtype: str | None = None,
        max_shard_size: str = "5GB",
        verify: bool = True,
        adapters: str = "merged",
        pad: bool = False,
        push: str | None = None,
    ) -> None:
        super().__init__()
        ExportOptions(dtype, max_shard_size, adapters, pad, prefix="export.")  # refuses what cannot be followed
        self.folder_name, self.dtype, self.max_shard_size, self.verify = folder, dtype, max_shard_size, verify
        self.adapters, self.pad, self.push = adapters, pad, push
        self.record: ExportRecord | None = None
        self.difference: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer without a search."""
        if stage == "fit":
            self.check_before_search(trainer)

    def check_before_search(self, trainer: Trainer) -> None:
        """Refuses what cannot be written, before the hours of work, not after."""
        check_folder(self._folder(trainer))
        every: Any = trainer.callbacks  # type: ignore[attr-defined]
        if self in every and any(isinstance(other, LoRARecoveryCallback) for other in every[every.index(self) :]):
            raise ConfigurationError(
                "trainer.callbacks: expected PrunedExportCallback after LoRARecoveryCallback, which merges its adapters, got it before; "
                "move it behind"
            )
        if self.adapters == "folder" and first_of(trainer, LoRARecoveryCallback) is None:
            raise ConfigurationError("export.adapters: expected a run with LoRA recovery for a folder of adapters, got none; give merged")
        if self.push is not None and trainer.is_global_zero:
            from adapruner.export.push import check_push

            check_push(self.push)

    def before_merge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With ``adapters: folder``: writes and checks the folder; called by recovery, which then merges the adapters."""
        pruning = self._pruning(trainer)
        if self.adapters != "folder" or pruning.plan is None or pruning.scored is None or not trainer.is_global_zero:
            return
        model, folder = held_model(pl_module, pruning.model_attribute), self._folder(trainer)
        sizes = {"dtype": self.dtype, "max_shard_size": self.max_shard_size}
        with staged(Path(os.path.abspath(folder))) as new:
            plain, record = export_either(
                model, getattr(pl_module, "tokenizer", None), pruning.scored.structure, pruning.plan, new, card={}, **sizes
            )
        self.record = replace(record, path=folder)
        announce(f"exported {record.class_name} to {folder}, the adapters to {folder / ADAPTER_FOLDER}")
        if self.verify:
            from adapruner.export.verification import difference_apart

            self._check(trainer, plain)
            self.difference = max(self.difference or 0.0, difference_apart(folder, model, self._tokens(trainer)))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes and checks the folder; where it is there already, its model card gets what was measured since."""
        pruning = self._pruning(trainer)
        if pruning.plan is None or pruning.scored is None or not trainer.is_global_zero:
            return
        model: Any = held_model(pl_module, pruning.model_attribute)
        folder, card = self._folder(trainer), self._card(trainer, pl_module)
        if self.record is not None and self.adapters == "folder":
            known, card = self.record, {**card, "adapter": ADAPTER_FOLDER}
            text = model_card(pruning.plan, class_name=known.class_name, stock=known.stock, notes=known.notes, card=card)
            write_atomically(folder / "README.md", text)
            return
        self.record = export_model(
            model,
            getattr(pl_module, "tokenizer", None),
            pruning.scored.structure,
            pruning.plan,
            folder,
            dtype=self.dtype,
            max_shard_size=self.max_shard_size,
            card=card,
            pad=self.pad,
        )
        announce(f"exported {self.record.class_name} to {folder}")
        if self.verify:
            self._check(trainer, model)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Pushes, last of all: a hub that cannot be reached costs nothing that the run has made."""
        if stage != "fit" or self.push is None or self.record is None or not trainer.is_global_zero:
            return
        from adapruner.export.push import push_folder

        plan = self._pruning(trainer).plan
        assert plan is not None
        announce(f"pushed to {push_folder(self.record.path, self.push, f'Pruned model, plan {plan.hash}')}")

    def report_sections(self, trainer: Trainer) -> dict[str, Any]:
        """What was exported, and how far the folder's logits are from the model's; nothing before the export."""
        if self.record is None:
            return {}
        section = {
            "path": str(self.record.path),
            "class": self.record.class_name,
            "stock": self.record.stock,
            "max_abs_logit_difference": self.difference,
            "notes": list(self.record.notes),
        }
        return {"export": section}

    def _check(self, trainer: Trainer, model: Any) -> None:
        from adapruner.export.verification import verify_export

        announce("loads the export in a fresh process and compares logits")
        self.difference = verify_export(self._folder(trainer), model, self._tokens(trainer))

    def _tokens(self, trainer: Trainer) -> torch.Tensor:
        """``[1, t]``: the beginning of the search split."""
        scored = self._pruning(trainer).scored
        assert scored is not None
        ids: torch.Tensor = scored.data.search_windows.input_ids[:1, :64]
        return ids

    def _card(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Licence of the base model, seeds, and what the report measured so far."""
        pruning = self._pruning(trainer)
        source = getattr(pl_module, "source", None) or (pruning.plan.model.get("name") if pruning.plan else None)
        revision = getattr(pl_module, "revision", None)
        report, lora = first_of(trainer, CompressionReportCallback), first_of(trainer, LoRARecoveryCallback)
        data: Any = getattr(trainer, "datamodule", None)
        seeds = {
            "everything": os.environ.get("PL_GLOBAL_SEED"),
            "data": getattr(data, "seed", None),
            "search": pruning.options.search.seed,
            "recovery": None if lora is None else lora.seed,
        }
        measured = {} if report is None or report.recorder is None else card_of_report(report.to_report(trainer, pl_module))
        return {
            **(base_licence(str(source), revision) if source else {}),
            "revision": revision,
            **measured,
            **written_in(self.dtype, measured),
            "seeds": {name: seed for name, seed in seeds.items() if seed is not None},
        }

    def _folder(self, trainer: Trainer) -> Path:
        if self.folder_name:
            return Path(self.folder_name)
        return Path(self._pruning(trainer).folder_name or trainer.default_root_dir) / "model"

    def _pruning(self, trainer: Trainer) -> PruningSearchCallback:
        found = first_of(trainer, PruningSearchCallback)
        if found is None:
            raise ConfigurationError("trainer.callbacks: expected a PruningSearchCallback beside PrunedExportCallback, got none; add one")
        return found
