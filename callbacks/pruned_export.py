"""Writes the final model as a folder that loads elsewhere, and checks in another process that it does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor

from adapruner.argument_checks import check_call
from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.gguf_target import GgufTarget
from adapruner.callbacks.listener import PruningListener, first_of
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_bar import end_bar
from adapruner.errors import ConfigurationError
from adapruner.export.adapters import ADAPTER_FOLDER, export_either
from adapruner.export.card import card_of_report, card_of_run, model_card
from adapruner.export.folder import ExportRecord
from adapruner.export.options import ExportOptions
from adapruner.export.staging import check_folder, staged
from adapruner.export.verification import Verification, verify_export
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import write_sums
from adapruner.models.model_attribute import held_model
from adapruner.models.rotary import restore_rotary
from adapruner.progress import announce
from adapruner.stage_times import stage

#: Windows of the search split, and tokens of each, whose perplexity is measured before and after writing.
VERIFIED = (8, 128)


class PrunedExportCallback(PruningListener):
    """Exports at the end of ``fit``, after the adapters are merged.

    The model card tells what the run measured: put it behind :class:`CompressionReportCallback` in the list.

    Args:
        folder: where to; ``model`` in the run folder when empty. An earlier export there is replaced.
        verify: load the folder in a fresh process, as it will be served, and compare logits and perplexity.
        push: upload the folder to the hub under this name, ``user/model``, at the very end. A new repository is private.
        gguf: write the model for llama.cpp, too, to this file, ``model.gguf``; a relative path lies in the run folder.
        options: ``dtype``, ``max_shard_size``, ``adapters``, ``pad``, as in :class:`adapruner.export.options.ExportOptions`.

    >>> PrunedExportCallback(dtype="bfloat16").options.dtype
    'bfloat16'
    """

    def __init__(
        self, folder: str | None = None, verify: bool = True, push: str | None = None, gguf: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        check_call(PrunedExportCallback.__init__, {"folder": folder, "verify": verify, "push": push, "gguf": gguf}, "export.")
        self.options = ExportOptions(**options, prefix="export.")
        self.folder_name, self.verify, self.push = folder, verify, push
        self.gguf = None if gguf is None else GgufTarget(gguf, self.options)
        self.record: ExportRecord | None = None
        self.verification: Verification | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer without a search."""
        if stage == "fit":
            self.check_before_search(trainer)

    def check_before_search(self, trainer: Trainer) -> None:
        """Refuses what cannot be written, before the hours of work, not after."""
        folder, run = self._folder(trainer), self._run_folder(trainer)
        check_folder(folder)
        if run.resolve().is_relative_to(folder.resolve()):
            raise ConfigurationError(f"export.folder: expected a place beside or inside the run folder, got {folder}; give {run / 'model'}")
        if self.options.adapters == "folder" and first_of(trainer, LoRARecoveryCallback) is None:
            raise ConfigurationError("export.adapters: expected a run with LoRA recovery for a folder of adapters, got none; give merged")
        recovery = first_of(trainer, LoRARecoveryCallback)
        if self.options.adapters == "folder" and recovery is not None and recovery.form != "lora":
            raise ConfigurationError(
                f"export.adapters: expected recovery.form lora for a folder of adapters, got {recovery.form!r}; give merged"
            )
        if self.options.adapters == "folder" and recovery is not None and recovery.lora.also_train:
            raise ConfigurationError(
                "export.adapters: expected adapters alone to train for a folder of them, got recovery.lora.also_train "
                f"{' and '.join(recovery.lora.also_train)}, which are part of the model; give merged"
            )
        if self.gguf is not None:
            self.gguf.check(run, folder)
        if self.push is not None and trainer.is_global_zero:
            from adapruner.export.push import check_push

            check_push(self.push)

    def check_with_model(self, pl_module: LightningModule, model: Any) -> None:
        """Refuses a model that was to be written as GGUF, too, and cannot be."""
        if self.gguf is not None:
            pruning = self._pruning(pl_module.trainer)
            self.gguf.check_model(model, pruning.tokenizer_of(pl_module), pruning.options)

    def bytes_to_write(self, trainer: Trainer, weights: int) -> int:
        """Bytes that an export of so many weights takes, at least."""
        own = next(trainer.lightning_module.parameters()).element_size()
        each = 4 if self.options.dtype == "float32" else 2 if self.options.dtype else own
        return weights * each * (1 if self.gguf is None else 2)

    def before_merge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With ``adapters: folder``: writes and checks the folder; called by recovery, which then merges the adapters."""
        if self.options.adapters == "folder":
            self._export(trainer, pl_module, {})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes and checks the folder; where it is there already, its model card gets what was measured since."""
        end_bar(trainer)
        plan, record = self._pruning(trainer).plan, self.record
        if plan is None or not trainer.is_global_zero:
            return
        card = self._card(trainer, pl_module)
        if self.options.adapters == "merged" or record is None:
            self._export(trainer, pl_module, card)
        else:
            card["adapter"] = ADAPTER_FOLDER
            text = model_card(plan, class_name=record.class_name, stock=record.stock, notes=record.notes, card=card)
            write_atomically(record.path / "README.md", text)
            write_sums(record.path)

    @stage("export")
    def _export(self, trainer: Trainer, pl_module: LightningModule, card: dict[str, Any]) -> None:
        pruning, folder = self._pruning(trainer), self._folder(trainer)
        scored, plan = pruning.scored, pruning.plan
        if plan is None or scored is None or not trainer.is_global_zero:
            return
        if pruning.lock is not None:
            pruning.lock.check()
        model, tokenizer = held_model(pl_module, pruning.model_attribute), pruning.tokenizer_of(pl_module)
        restore_rotary(model)  # which a Trainer's precision may have rounded: what is served has it exact
        with staged(folder) as new:
            record = export_either(model, tokenizer, scored.structure, plan, new, self.options, card)
        self.record = replace(record, path=folder)
        announce(f"exported {record.class_name} to {folder}")
        if self.verify:
            windows, tokens = VERIFIED
            self.verification = self._verified(folder, model, scored.data.search_windows.input_ids[:windows, :tokens])
        if self.gguf is not None:
            self.gguf.write(folder, self._run_folder(trainer))

    def _verified(self, folder: Path, model: Any, input_ids: Tensor) -> Verification:
        """How the folder, which stays, compares with the model."""
        announce("loads the export in a fresh process and compares logits and perplexity")
        found = verify_export(folder, model, input_ids)
        found.check(str(folder))
        announce(f"the export {found.in_words()}")
        return found

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
        compared = None if self.verification is None else self.verification.to_report()
        if self.record is None:
            return {}
        return {"export": {**self.record.to_report(compared), "gguf": None if self.gguf is None else self.gguf.to_report()}}

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
        measured["seeds"] = {name: seed for name, seed in seeds.items() if seed is not None}
        return card_of_run(str(source), measured, revision=revision, dtype=self.options.dtype)

    def _folder(self, trainer: Trainer) -> Path:
        if self.folder_name:
            return Path(self.folder_name)
        return self._run_folder(trainer) / "model"

    def _run_folder(self, trainer: Trainer) -> Path:
        return Path(self._pruning(trainer).folder_name or trainer.default_root_dir)

    def _pruning(self, trainer: Trainer) -> PruningSearchCallback:
        found = first_of(trainer, PruningSearchCallback)
        if found is None:
            raise ConfigurationError("trainer.callbacks: expected a PruningSearchCallback beside PrunedExportCallback, got none; add one")
        return found
