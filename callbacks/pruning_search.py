"""Searches which units to remove, removes them, and refits what is left: all before the Trainer's first step.

Everything happens in ``setup("fit")``: data and collectives are there, the model is not yet wrapped or bound to an
optimizer. (In ``on_fit_start`` the optimizer would silently hold parameters that no longer exist.)
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.argument_checks import check_call
from adapruner.callbacks.listener import listeners_of, requested_checkpoint
from adapruner.callbacks.loggers import LateLoggers, log_trial
from adapruner.callbacks.lora_recovery import short_recovery
from adapruner.callbacks.recovery_bar import count_steps, leave_out_adverts
from adapruner.callbacks.terminal import on_terminal
from adapruner.callbacks.validation import check_optimized, check_trainer, check_training
from adapruner.data.from_texts import data_from_texts
from adapruner.data.run_data import RunData
from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError, written_as
from adapruner.files.folder_lock import FolderLock, held, no_empty_folders
from adapruner.models.loading import check_language_model
from adapruner.models.model_attribute import held_model
from adapruner.models.rotary import restore_rotary
from adapruner.progress import RUN_LOG, logged_to
from adapruner.pruned_module import carry_pruning
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.recovery.checkpoint_contents import check_contents, plan_of_checkpoint
from adapruner.recovery.judged_refit import JudgedRefit
from adapruner.search.config import SearchConfig
from adapruner.search.find_plan import FoundPlan, find_plan, save_found_plan
from adapruner.search.journal import FILE as JOURNAL
from adapruner.search.options import pruning_options, short_names
from adapruner.search.rounds import folder_of_round
from adapruner.search.score import ScoredModel, score_model
from adapruner.stage_times import keep_times
from adapruner.stages import reconstruct


class PruningSearchCallback(Callback):
    """Joint search over calibration data and importance metrics, then one surgery (AdaPruner, arXiv 2503.06184).

    The module must hold a Hugging Face causal LM under ``model_attribute``. The text comes from ``calibration``, or from a data
    module that offers :class:`adapruner.data.run_data.PruningData` (:class:`adapruner.PruningDataModule` does).

    A plan is taken from, in this order: the checkpoint that training resumes from (of ``fit(ckpt_path=...)`` where the folder holds no
    study), ``plan``, and at last the search, which itself goes on from the study of a run that was killed.

    Args:
        budget: how much to remove; a number is a fraction of the block parameters.
        search: how to search.
        plan: a plan file to apply instead of searching.
        folder: where ``plan.json``, ``trials.csv`` and the study go; the Trainer's ``default_root_dir`` when empty.
        model_attribute: the module's attribute that holds the language model, such as ``model`` or ``net.lm``.
        calibration: where there is no data module: texts, a mapping of source names to texts, a ``datasets.Dataset`` or token
            windows, as :func:`adapruner.prune` takes them.
        tokenizer: for ``calibration``, and saved with the export; the module's ``tokenizer`` when empty.
        evaluation: beside ``calibration``: held-out texts, in the same forms, on which a :class:`CompressionReportCallback` in the same
            Trainer measures perplexity at every stage, before the pruning and after it.
        options: ``recipe``, ``reconstruction``, ``attention_units``, ... as :func:`adapruner.search.options.pruning_options` takes them.

    >>> PruningSearchCallback(0.3).options.budget.pruned_fraction
    0.3
    """

    def __init__(
        self,
        budget: Budget = Budget(),
        search: SearchConfig = SearchConfig(),
        plan: str | None = None,
        folder: str | None = None,
        model_attribute: str = "model",
        calibration: Any = None,
        tokenizer: Any = None,
        evaluation: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        leave_out_adverts()  # a Trainer is made after its callbacks
        check_call(PruningSearchCallback.__init__, {"plan": plan, "folder": folder, "model_attribute": model_attribute}, "pruning.")
        self.short_names = short_names(budget, search)
        with written_as(self.short_names):
            self.options = pruning_options(budget, search, plan=plan, seed=None, **options)
        self.folder_name, self.model_attribute = folder, model_attribute
        self.calibration, self.tokenizer, self.evaluation = calibration, tokenizer, evaluation
        if evaluation is not None and calibration is None:
            raise ConfigurationError(
                "evaluation: expected calibration beside it, got none, so that text comes from a data module, whose evaluation_windows are "
                "measured; give both, or neither"
            )
        self.checkpoint: str | None = None  # set by the command line when it resumes, else what fit(ckpt_path=...) asks for
        self.began: float | None = None  # likewise: when its process began, by the system's clock
        self.weights_follow = False  # likewise, where it goes on from the run's own checkpoint
        self.plan: PruningPlan | None = None
        """For the dense model, once it is found."""
        self.scored: ScoredModel | None = None
        self.found: FoundPlan | None = None
        self.reconstruction_seconds = 0.0
        self.judged: JudgedRefit | None = None
        self.folder = Path()
        self.lock: FolderLock | None = None  # set by the command line, which holds the folder beyond the last callback
        self.loggers, self._holding = LateLoggers(), ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """At the start of ``fit``: search, surgery and reconstruction, once. Before ``test`` and the like: checkpoints fit the module."""
        carry_pruning(pl_module, self.model_attribute)
        self._holding.enter_context(on_terminal(trainer))
        if stage == "fit" and self.plan is not None and getattr(pl_module, "plan", None) is not self.plan:
            raise ConfigurationError(
                f"trainer.callbacks: expected the module that was pruned before, got another {type(pl_module).__name__}; "
                "make new callbacks for it"
            )
        if stage == "fit":
            count_steps(trainer)
        if stage != "fit" or self.plan is not None:
            return
        self.folder = Path(self.folder_name or trainer.default_root_dir)
        self.began = self.began or time.time()
        studies = (self.folder, folder_of_round(self.folder, 1))
        if self.checkpoint is None and not any((place / JOURNAL).exists() for place in studies):  # else the run's own search says the plan
            self.checkpoint = requested_checkpoint(trainer)
        check_trainer(trainer, self.folder, self.checkpoint, self.loggers.waiting or trainer.loggers)
        with written_as(self.short_names), no_empty_folders(self.folder):  # it makes the folder: not where anything else is refused
            Ranks().on_rank_zero(self._hold, self.folder)
            with isolate_rng():
                self._prune(trainer, pl_module)

    def _hold(self, folder: Path) -> None:
        if self.lock is None:
            self.lock = self._holding.enter_context(held(folder))

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = self.language_model(pl_module)
        model.to(trainer.strategy.root_device)
        data = self.data(trainer, pl_module)
        check_contents(self.checkpoint, model, self.model_attribute)
        check_training(trainer, pl_module, model, data, self.options.budget)
        resumed = plan_of_checkpoint(self.checkpoint)
        if resumed is not None:  # its weights are loaded by the Trainer, after the surgery
            self.options = replace(self.options, plan=resumed, recipe=None)
        self.scored = score_model(
            model,
            data,
            self.options,
            name=getattr(pl_module, "name_or_path", None),
            folder=self.folder,
            compared_metrics=[metric for listener in listeners_of(trainer) for metric in listener.compared_metrics],
            on_accepted=partial(self._accepted, trainer),
            room=self._bytes_to_write(trainer, model),
        )
        self.options = self.scored.options
        for listener in listeners_of(trainer):
            listener.on_scored(trainer, pl_module)
        recover = short_recovery(trainer, pl_module, self.options.search.recovery_steps)
        self.found = find_plan(self.scored, recover=recover, on_trial=partial(log_trial, trainer.loggers))
        self.plan, self.scored = self.found.plan, self.scored.after_search()
        self._notify(trainer, pl_module, "dense")
        pruned = reconstruct(self.scored, self.found, widths_only=self._refit_is_known(trainer))
        self.reconstruction_seconds, self.judged = pruned.seconds, pruned.judged
        self.scored = self.scored.after_pruning()
        pl_module.plan = self.plan  # type: ignore[assignment]
        save_found_plan(self.scored, self.found, self.tokenizer_of(pl_module))
        self._notify(trainer, pl_module, pruned.stage)

    def _bytes_to_write(self, trainer: Trainer, model: Any) -> int:
        """What the callbacks will write of the pruned model, at least: a disk without that room refuses the run."""
        left = self.options.weights_left(sum(p.numel() for p in model.parameters()))
        every: Any = trainer.callbacks  # type: ignore[attr-defined]
        return sum(callback.bytes_to_write(trainer, left) for callback in every if hasattr(callback, "bytes_to_write"))

    def _accepted(self, trainer: Trainer, identity: str) -> None:
        for listener in listeners_of(trainer):
            listener.on_search_accepted(trainer)
        self._holding.enter_context(logged_to(self.folder / RUN_LOG))
        self._holding.enter_context(keep_times(self.folder, identity, self.began))
        self.loggers.open(trainer)

    def data(self, trainer: Trainer, pl_module: LightningModule) -> RunData:
        """The run's token windows: of ``calibration``, else of the Trainer's data module.

        Raises:
            DataError: if neither has them.
        """
        if self.calibration is None:
            return RunData.of(getattr(trainer, "datamodule", None))
        asked: dict[str, Any] = {"evaluation": self.evaluation, "seed": self.options.search.seed}
        return data_from_texts(self.calibration, self.tokenizer_of(pl_module), **asked)

    def tokenizer_of(self, pl_module: LightningModule) -> Any:
        """The one that this callback was given, else the module's; ``None`` where there is none."""
        return self.tokenizer if self.tokenizer is not None else getattr(pl_module, "tokenizer", None)

    def language_model(self, pl_module: LightningModule) -> Any:
        """The Hugging Face model inside the module, loaded if the module loads late.

        Raises:
            ModelError: if the attribute is missing, is not a causal LM, or holds one that is sharded already.
        """
        pl_module.configure_model()
        model = held_model(pl_module, self.model_attribute, None)
        check_language_model(model, f"{type(pl_module).__name__}.{self.model_attribute}")
        return model

    def _refit_is_known(self, trainer: Trainer) -> bool:
        """Whether a checkpoint brings the weights, and nobody has to measure the refit: then the widths are enough."""
        known = all(listener.knows_stage(trainer, "reconstructed") for listener in listeners_of(trainer))
        return bool(trainer.strategy.broadcast(self.weights_follow and known))

    def _notify(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for listener in listeners_of(trainer):
            listener.on_pruning_stage(trainer, pl_module, stage, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses an optimizer that holds parameters from before the surgery; rotary frequencies that the Trainer's precision rounded
        (``bf16-true``) are exact again, as a server will have them."""
        check_optimized(trainer, pl_module)
        restore_rotary(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The folder is free for the next attempt in this process."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The folder is free for the next run in this process."""
        self._release()

    def _release(self) -> None:
        self._holding.close()
        self.lock = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stands before those that export and report: a run folder that was renamed is not made anew."""
        if self.lock is not None:
            self.lock.check()

    def state_dict(self) -> dict[str, Any]:
        """The plan, as JSON types."""
        return {"plan": self.plan.to_dict()} if self.plan else {}
