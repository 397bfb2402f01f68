"""Measures the dense, pruned, reconstructed and recovered model, and other methods at the same budget; writes the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.callbacks.listener import PruningListener, first_of, listeners_of
from adapruner.callbacks.loggers import log_report
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback, short_recovery
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.errors import ConfigurationError
from adapruner.files.value_cache import ValueCache
from adapruner.models.model_attribute import held_model
from adapruner.progress import announce
from adapruner.report.measured_before import FILE, MeasuredBefore
from adapruner.report.recorder import ReportConfig, ReportRecorder


class CompressionReportCallback(PruningListener):
    """Writes ``report.json`` and ``report.html`` and prints the answer.

    Needs a :class:`PruningSearchCallback` in the same Trainer; perplexity is measured where the run's data has ``evaluation_windows``.

    Args:
        compare: metrics to prune with alone, at the same budget; empty for none. The best fixed recipe that the search tried
            (a metric, a source, one global ranking) is compared too.
        compare_allocations: ``uniform`` (every layer loses the same), ``global`` (one ranking of score per parameter).
        compare_recovered: (needs trainer.max_steps) recover each compared method too, with the run's own data and optimizer. Costs
            one short training each and a copy of the pruned model.
        batch_size: windows in one forward pass of an evaluation.
        prompts: texts that the dense and the final model continue, for the page.
        latency_seq_len: tokens in the timed forward pass.
        latency_repeats: timed rounds.
        speed_batches: batch sizes at which dense and pruned model are timed side by side, prefill and decoding; empty for none.
        speed_seq_lens: lengths in tokens of these, each with each batch size; ``latency_seq_len`` when empty.
        name: of the run; the run folder's name when empty.
        folder: where the report goes; the search's folder when empty.

    >>> CompressionReportCallback(compare=["l2", "wanda_sp"]).compared_metrics
    ['l2', 'wanda_sp']
    """

    def __init__(
        self,
        compare: list[str] | None = None,
        compare_allocations: list[str] | None = None,
        compare_recovered: bool = False,
        batch_size: int = 8,
        prompts: list[str] | None = None,
        latency_seq_len: int = 128,
        latency_repeats: int = 20,
        speed_batches: list[int] | None = None,
        speed_seq_lens: list[int] | None = None,
        name: str | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        self.config = ReportConfig(
            compare=list(compare or []),
            compare_allocations=list(compare_allocations or ["uniform"]),
            batch_size=batch_size,
            prompts=list(prompts or []),
            latency_seq_len=latency_seq_len,
            latency_repeats=latency_repeats,
            speed_batches=list(speed_batches or []),
            speed_seq_lens=list(speed_seq_lens or []),
        )
        self.compared_metrics = self.config.compare
        self.compare_recovered, self.name, self.folder_name = compare_recovered, name, folder
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

    def check_before_search(self, trainer: Trainer) -> None:
        """What a comparison after recovery needs."""
        if not self.compare_recovered or first_of(trainer, LoRARecoveryCallback) is None:
            return
        if trainer.max_steps < 1 or trainer.accumulate_grad_batches != 1 or not hasattr(trainer.lightning_module, "build_optimizer"):
            raise ConfigurationError(
                "report.compare_recovered: expected trainer.max_steps, no gradient accumulation and a module with build_optimizer, got "
                f"max_steps {trainer.max_steps}, accumulate_grad_batches {trainer.accumulate_grad_batches} and "
                f"{type(trainer.lightning_module).__name__}; set trainer.max_steps or compare_recovered: false"
            )

    def on_pruning_stage(self, trainer: Trainer, pl_module: LightningModule, stage: str, pruning: PruningSearchCallback) -> None:
        """Measures on the first rank: at ``dense``, with the plan known, and after the surgery."""
        self._pruning = pruning
        if not trainer.is_global_zero:
            return
        assert pruning.scored is not None
        assert pruning.found is not None
        model = pruning.language_model(pl_module)
        with isolate_rng():
            if stage == "dense":
                tokenizer = getattr(pl_module, "tokenizer", None) if self.config.prompts else None
                self.recorder = ReportRecorder(self.config, pruning.scored.data, tokenizer, self._measured_before(trainer, pruning))
                recover = short_recovery(trainer, pl_module, trainer.max_steps) if self.compare_recovered else None
                self.recorder.measure_dense(model, pruning.scored, pruning.found, recover)
            elif self.recorder is not None:
                self.recorder.measure_stage(stage, model)

    def knows_stage(self, trainer: Trainer, stage: str) -> bool:
        """Whether an earlier attempt measured the plan at this stage, so that the model need not be brought there again."""
        return self.recorder is not None and self.recorder.knows_stage(stage)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the final model; the export follows, then :meth:`teardown` writes."""
        if self._pruning is None or self._pruning.plan is None or self.recorder is None or not trainer.is_global_zero:
            return
        with isolate_rng():
            recovered = first_of(trainer, LoRARecoveryCallback) is not None
            self.recorder.measure_final(held_model(pl_module, self._pruning.model_attribute), recovered)
        self._complete = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the report of a run that came to its end."""
        if stage != "fit" or not self._complete or not trainer.is_global_zero:
            return
        from adapruner.report.record import write_report
        from adapruner.report.terminal import print_report

        assert self._pruning is not None
        folder = Path(self.folder_name or self._pruning.folder)
        record = self.to_report(trainer, pl_module)
        write_report(record, folder)
        log_report(trainer.loggers, record, trainer.global_step)
        print_report(record)
        announce(f"report: {folder / 'report.html'}")
        self._complete = False

    def to_report(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The dictionary that ``report.json`` holds; see :mod:`adapruner.report.schema`."""
        pruning = self._pruning
        sections: dict[str, Any] = {}
        for listener in listeners_of(trainer):
            sections |= listener.report_sections(trainer)
        assert pruning is not None
        assert pruning.scored is not None
        assert pruning.found is not None
        assert self.recorder is not None
        return self.recorder.to_report(
            pruning.scored,
            pruning.found,
            name=self.name or Path(trainer.default_root_dir).name,
            model=held_model(pl_module, pruning.model_attribute),
            processes=trainer.world_size,
            reconstruction_seconds=pruning.reconstruction_seconds,
            card=pruning.scored.data.card,
            **sections,
        )

    def _measured_before(self, trainer: Trainer, pruning: PruningSearchCallback) -> MeasuredBefore:
        """In the run's folder, where something says what the whole run depends on: the command line, by the settings of checkpoints."""
        checkpoint, scored, plan = first_of(trainer, RecoveryCheckpointCallback), pruning.scored, pruning.plan
        assert scored is not None
        if checkpoint is None or not checkpoint.settings or not scored.data.fingerprint or plan is None:
            return MeasuredBefore()
        identity = {
            **scored.identity,
            "settings": checkpoint.settings,
            "all data": scored.data.fingerprint,
            "plan": plan.hash,
            "batch size": self.config.batch_size,
            "recovered too": self.compare_recovered,
        }
        return MeasuredBefore(ValueCache(pruning.folder / FILE, identity, shared=False), list(scored.data.evaluation_windows))
