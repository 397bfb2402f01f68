"""Measures the dense, pruned, reconstructed and recovered model, and other methods at the same budget; writes the report."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.argument_checks import check_call
from adapruner.callbacks.listener import PruningListener, first_of, listeners_of
from adapruner.callbacks.loggers import log_report
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback, short_recovery
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_bar import end_bar
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.errors import ConfigurationError, ModelError
from adapruner.files.folder_lock import check_there
from adapruner.models.model_attribute import held_model
from adapruner.progress import announce
from adapruner.recovery.early_stop import check_not_judged
from adapruner.recovery.time_budget import check_no_time_budget
from adapruner.report.measured_before import MeasuredBefore
from adapruner.report.record import check_can_draw
from adapruner.report.recorder import ReportConfig, ReportRecorder


class CompressionReportCallback(PruningListener):
    """Writes ``report.json`` and ``report.html`` and prints the answer.

    Needs a :class:`PruningSearchCallback` in the same Trainer; perplexity is measured where the run's data has ``evaluation_windows``.

    Args:
        name: of the run; the run folder's name when empty.
        folder: where the report goes; the search's folder when empty.
        config: ``compare``, ``prompts``, ``batch_size``, ... as in :class:`adapruner.ReportConfig`.

    >>> CompressionReportCallback(compare=["l2", "wanda_sp"]).compared_metrics
    ['l2', 'wanda_sp']
    """

    def __init__(self, name: str | None = None, folder: str | None = None, **config: Any) -> None:
        super().__init__()
        check_call(CompressionReportCallback.__init__, {"name": name, "folder": folder}, "report.")
        self.config = ReportConfig(**config)
        self.compared_metrics = self.config.compare
        self.name, self.folder_name = name, folder
        self.recorder: ReportRecorder | None = None
        self._pruning: PruningSearchCallback | None = None
        self._complete = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer without a search."""
        if stage == "fit" and first_of(trainer, PruningSearchCallback) is None:
            raise ConfigurationError(
                "trainer.callbacks: expected a PruningSearchCallback beside CompressionReportCallback, got none; add one"
            )

    def sequence_lengths(self) -> dict[str, int]:
        """The timed sequences."""
        return self.config.sequence_lengths()

    def bytes_to_write(self, trainer: Trainer, weights: int) -> int:
        """Bytes of the page, at least: it holds what draws its charts."""
        return 900_000

    def check_before_search(self, trainer: Trainer) -> None:
        """What the page needs, and a comparison after recovery."""
        check_can_draw()
        recovery = first_of(trainer, LoRARecoveryCallback)
        if not self.config.compare_recovered or recovery is None:
            return
        check_no_time_budget(recovery.ending.seconds)
        check_not_judged(recovery.ending.early_stop)
        if trainer.max_steps < 1 or trainer.accumulate_grad_batches != 1 or not hasattr(trainer.lightning_module, "build_optimizer"):
            raise ConfigurationError(
                "report.compare_recovered: expected trainer.max_steps, no gradient accumulation and a module with build_optimizer, got "
                f"max_steps {trainer.max_steps}, accumulate_grad_batches {trainer.accumulate_grad_batches} and "
                f"{type(trainer.lightning_module).__name__}; set trainer.max_steps or compare_recovered: false"
            )

    def check_with_model(self, pl_module: LightningModule, model: Any) -> None:
        """Prompts that leave no room for what the model writes."""
        pruning = first_of(pl_module.trainer, PruningSearchCallback)
        self.config.check_prompts(model, pruning.tokenizer_of(pl_module) if self.config.prompts and pruning is not None else None)

    def on_pruning_stage(self, trainer: Trainer, pl_module: LightningModule, stage: str, pruning: PruningSearchCallback) -> None:
        """Measures on the first rank: at ``dense``, with the plan known, and after the surgery."""
        self._pruning = pruning
        if not trainer.is_global_zero:
            return
        with isolate_rng():
            if stage == "dense":
                self.recorder = self._recorder(trainer, pl_module, pruning)
                self.recorder.measure_dense(
                    short_recovery(trainer, pl_module, trainer.max_steps) if self.config.compare_recovered else None
                )
            elif self.recorder is not None:
                self.recorder.measure_stage(stage, pruning.language_model(pl_module), pruning.judged)

    def knows_stage(self, trainer: Trainer, stage: str) -> bool:
        """Whether an earlier attempt measured the plan at this stage, so that the model need not be brought there again."""
        return self.recorder is not None and self.recorder.knows_stage(stage)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the final model; the export follows, then :meth:`teardown` writes."""
        if self._pruning is None or self.recorder is None:
            return
        end_bar(trainer)
        with isolate_rng():
            recovered = first_of(trainer, LoRARecoveryCallback) is not None and trainer.global_step > 0
            self.recorder.measure_final(held_model(pl_module, self._pruning.model_attribute), recovered)
        self._complete = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the report of a run that came to its end."""
        if stage != "fit" or not self._complete or self._pruning is None:
            return
        from adapruner.report.record import write_report
        from adapruner.report.terminal import print_report

        folder = Path(self.folder_name or self._pruning.folder)
        if not self.folder_name:
            check_there(folder)
        record = self.to_report(trainer, pl_module)
        write_report(record, folder)
        log_report(trainer.loggers, record, trainer.global_step)
        print_report(record)
        announce(f"report: {folder / 'report.html'}")
        self._complete = False

    def to_report(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The dictionary that ``report.json`` holds; see :mod:`adapruner.report.schema`."""
        sections: dict[str, Any] = {}
        for listener in listeners_of(trainer):
            sections |= listener.report_sections(trainer)
        assert self._pruning is not None
        assert self.recorder is not None
        return self.recorder.to_report(
            name=self.name or Path(trainer.default_root_dir).name,
            model=held_model(pl_module, self._pruning.model_attribute),
            processes=trainer.world_size,
            reconstruction_seconds=self._pruning.reconstruction_seconds,
            **sections,
        )

    def _tokenizer(self, pl_module: LightningModule, pruning: PruningSearchCallback) -> Any:
        """For the prompts, the search's or the module's; samples of held-out text, which nobody asked for, do without one that cannot be
        loaded."""
        if self.config.prompts is not None:
            return pruning.tokenizer_of(pl_module) if self.config.prompts else None
        with suppress(ModelError):
            return pruning.tokenizer_of(pl_module)
        return None

    def _recorder(self, trainer: Trainer, pl_module: LightningModule, pruning: PruningSearchCallback) -> ReportRecorder:
        """It remembers earlier attempts where something says what the whole run depends on: the command line, by checkpoints' settings."""
        scored, found, checkpoint = pruning.scored, pruning.found, first_of(trainer, RecoveryCheckpointCallback)
        assert scored is not None
        assert found is not None
        tokenizer = self._tokenizer(pl_module, pruning)
        if checkpoint is None or not checkpoint.settings:
            return ReportRecorder(self.config, scored, found, tokenizer)
        depends = {"settings": checkpoint.settings, "batch_size": self.config.batch_size, "recovered too": self.config.compare_recovered}
        return ReportRecorder(self.config, scored, found, tokenizer, MeasuredBefore.of(scored, found, **depends))
