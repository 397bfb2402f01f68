"""Searches which units to remove, removes them, and refits what is left: all before the Trainer's first step.

Everything happens in ``setup("fit")``: data and collectives are there, the model is not yet wrapped or bound to an
optimizer. (In ``on_fit_start`` the optimizer would silently hold parameters that no longer exist.)
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.callbacks.listener import first_of, listeners_of
from adapruner.callbacks.loggers import TrialLogger, keep_earlier_metrics
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback, short_recovery
from adapruner.callbacks.validation import check_trainer, check_training
from adapruner.data.from_texts import data_from_texts
from adapruner.data.run_data import RunData
from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError, ModelError, check_all
from adapruner.export.saving import save_as_export
from adapruner.export.staging import check_no_export
from adapruner.files.atomic import clear_leftovers
from adapruner.files.folder_lock import FolderLock, check_folder
from adapruner.models.loading import check_language_model
from adapruner.models.model_attribute import held_model
from adapruner.models.tracing import AttentionUnits, FfnUnits
from adapruner.progress import announce
from adapruner.pruned_module import carry_pruning
from adapruner.pruning.budget import Budget
from adapruner.pruning.depth_and_width import DepthWidthConfig
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.checkpoint_contents import plan_of_checkpoint
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.search.apply_plan import apply_found_plan
from adapruner.search.config import SearchConfig
from adapruner.search.find_plan import FoundPlan, find_plan, save_found_plan
from adapruner.search.options import PruningOptions
from adapruner.search.score import ScoredModel, score_model


class PruningSearchCallback(Callback):
    """Joint search over calibration data and importance metrics, then one surgery (AdaPruner, arXiv 2503.06184).

    The module must hold a Hugging Face causal LM under ``model_attribute``. The text comes from ``calibration``, or from a data
    module that offers :class:`adapruner.data.run_data.PruningData` (:class:`adapruner.PruningDataModule` does).

    A plan is taken from, in this order: the checkpoint that training resumes from, ``plan``, and at last the search, which itself
    goes on from the study of a run that was killed.

    Args:
        budget: how much to remove; a number is a fraction of the block parameters.
        search: how to search.
        reconstruction: the closed-form refit right after the surgery; ``null`` leaves it out.
        plan: a plan file to apply instead of searching.
        recipe: a fixed recipe to prune by instead of searching: a published method, or what a search found elsewhere.
        folder: where ``plan.json``, ``trials.csv`` and the study go; the Trainer's ``default_root_dir`` when empty.
        statistics_batch_size: calibration samples in one forward and backward pass.
        model_attribute: the module's attribute that holds the language model, such as ``model`` or ``net.lm``.
        attention_units: ``kv_group`` removes a KV head with all its query heads, ``query_head`` single query heads, equally
            many of each KV head. Only where there are several query heads for each KV head does it make a difference.
        ffn_units: ``channel`` removes single channels, in a mixture of experts equally many of each; ``expert`` removes whole experts
            with their rows of the router.
        remove_layers: whole decoder layers to remove before the search of units, those of the lowest ``layer_score``. They count
            towards the budget; layers that it protects stay.
        hidden_fraction: fraction of hidden channels to remove before the search of units, for Llama, Mistral, Qwen2 and Qwen3.
            They count towards the budget; protected layers lose them too.
        layer_score: what decides which layers go; see :mod:`adapruner.pruning.layer_scores`.
        calibration: where there is no data module: texts, a mapping of source names to texts, a ``datasets.Dataset`` or token
            windows, as :func:`adapruner.prune` takes them.
        tokenizer: for ``calibration``; the module's ``tokenizer`` when empty.

    >>> PruningSearchCallback(0.3).options.budget.pruned_fraction
    0.3
    """

    def __init__(
        self,
        budget: Budget = Budget(),
        search: SearchConfig = SearchConfig(),
        reconstruction: ReconstructionConfig | None = ReconstructionConfig(),
        plan: str | None = None,
        recipe: Recipe | None = None,
        folder: str | None = None,
        statistics_batch_size: int = 8,
        model_attribute: str = "model",
        attention_units: AttentionUnits = "kv_group",
        ffn_units: FfnUnits = "channel",
        remove_layers: int = 0,
        hidden_fraction: float = 0.0,
        layer_score: str = "block_influence",
        calibration: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.options = PruningOptions(
            budget if isinstance(budget, Budget) else Budget(budget),
            search,
            reconstruction,
            None if plan is None else read_plan(plan),
            recipe,
            attention_units,
            ffn_units,
            DepthWidthConfig(remove_layers, hidden_fraction, layer_score),
            statistics_batch_size,
        )
        self.plan_file, self.folder_name, self.model_attribute = plan, folder, model_attribute
        self.calibration, self.tokenizer = calibration, tokenizer
        self.checkpoint: str | None = None  # set by the command line when it resumes
        self.weights_follow = False  # likewise, where it goes on from the run's own checkpoint
        self.plan: PruningPlan | None = None
        """For the dense model, once it is found."""
        self.scored: ScoredModel | None = None
        self.found: FoundPlan | None = None
        self.reconstruction_seconds = 0.0
        self.folder = Path()
        self._lock = FolderLock()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """At the start of ``fit``: search, surgery and reconstruction, once. Before ``test`` and the like: checkpoints fit the module."""
        carry_pruning(pl_module, self.model_attribute)
        if stage == "fit" and self.plan is not None and getattr(pl_module, "plan", None) is not self.plan:
            raise ConfigurationError(
                f"trainer.callbacks: expected the module that was pruned before, got another {type(pl_module).__name__}; "
                "make new callbacks for it"
            )
        if stage != "fit" or self.plan is not None:
            return
        self.folder = Path(self.folder_name or trainer.default_root_dir)
        listeners = listeners_of(trainer)
        check_all(
            lambda: self._check_order(trainer),
            partial(check_no_export, self.folder),
            *check_trainer(trainer, self.checkpoint),
            *(partial(listener.check_before_search, trainer) for listener in listeners),  # their own setup comes after the search
        )
        check_folder(self.folder)  # it makes the folder: not where anything else is refused
        Ranks().on_rank_zero(self._lock.take, self.folder)
        if trainer.is_global_zero:
            clear_leftovers(self.folder)
        with isolate_rng():
            self._prune(trainer, pl_module)

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model, listeners = self.language_model(pl_module), listeners_of(trainer)
        model.to(trainer.strategy.root_device)
        data = self.data(trainer, pl_module)
        lora, budget = first_of(trainer, LoRARecoveryCallback), self.options.budget
        lengths = {"budget.seq_len": budget.seq_len} if budget.of == "latency" else {}
        for listener in listeners:
            lengths |= listener.sequence_lengths()
        check_training(trainer, pl_module, model, data, None if lora is None else lora.lora, lengths)
        resumed = plan_of_checkpoint(self.checkpoint)
        if resumed is not None:  # its weights are loaded by the Trainer, after the surgery
            announce(f"takes the plan {resumed.hash} from the checkpoint {self.checkpoint}: no search")
            self.options = replace(self.options, plan=resumed, recipe=None)
        elif self.options.plan is not None:
            announce(f"takes the plan {self.options.plan.hash} from {self.plan_file}: no search")

        def accepted() -> None:
            for listener in listeners:
                listener.on_search_accepted(trainer)
            keep_earlier_metrics(trainer.loggers)

        self.scored = score_model(
            model,
            data,
            self.options,
            name=getattr(pl_module, "name_or_path", None),
            folder=self.folder,
            compared_metrics=[metric for listener in listeners for metric in listener.compared_metrics],
            on_accepted=accepted,
        )
        self.options, rerank = self.scored.options, self.options.search.rerank
        recover = short_recovery(trainer, pl_module, 0 if rerank is None else rerank.recovery_steps)
        self.found = find_plan(self.scored, recover=recover, on_trial=TrialLogger(trainer.loggers))
        self.plan = self.found.plan
        self._notify(trainer, pl_module, "dense")
        self.reconstruction_seconds = apply_found_plan(self.scored, self.found, widths_only=self._refit_is_known(trainer))
        pl_module.plan = self.plan  # type: ignore[assignment]
        save_as_export(model, self.scored.structure, self.plan)
        save_found_plan(self.scored, self.found, getattr(pl_module, "tokenizer", self.tokenizer))
        self._notify(trainer, pl_module, "pruned" if self.options.reconstruction is None else "reconstructed")

    def _check_order(self, trainer: Trainer) -> None:
        lora = first_of(trainer, LoRARecoveryCallback)
        if lora is not None and lora.model_attribute != self.model_attribute:
            raise ConfigurationError(
                f"recovery.model_attribute: expected {self.model_attribute!r}, as the search has it, got {lora.model_attribute!r}; "
                "name the attribute that holds the language model in both"
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, LoRARecoveryCallback) for callback in takewhile(lambda callback: callback is not self, callbacks)):
            raise ConfigurationError(
                "trainer.callbacks: expected LoRARecoveryCallback after PruningSearchCallback, got it before; move it behind"
            )

    def data(self, trainer: Trainer, pl_module: LightningModule) -> RunData:
        """The run's token windows: of ``calibration``, else of the Trainer's data module.

        Raises:
            DataError: if neither has them.
        """
        if self.calibration is None:
            return RunData.of(getattr(trainer, "datamodule", None))
        tokenizer = self.tokenizer if self.tokenizer is not None else getattr(pl_module, "tokenizer", None)
        return data_from_texts(self.calibration, tokenizer, seed=self.options.search.seed)

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
        """An optimizer that holds parameters from before the surgery would train nothing, without a word."""
        alive = {id(p) for p in pl_module.parameters()}
        held = [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
        if getattr(trainer.strategy, "strategy_name", "") not in ("fsdp", "deepspeed") and any(id(p) not in alive for p in held):
            raise ModelError(
                "optimizer: expected only parameters of the pruned model, got some from before the surgery; "
                "build the optimizer in configure_optimizers"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The folder is free for the next attempt in this process."""
        self._lock.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The folder is free for the next run in this process."""
        self._lock.release()

    def state_dict(self) -> dict[str, Any]:
        """The plan, as JSON types."""
        return {"plan": self.plan.to_dict()} if self.plan else {}
