"""Searches which units to remove, removes them, and refits what is left: all before the Trainer's first step.

Everything happens in ``setup("fit")``: data and collectives are there, the model is not yet wrapped or bound to an
optimizer. (In ``on_fit_start`` the optimizer would silently hold parameters that no longer exist.)
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner.anatomy.fingerprint import fingerprint_model
from adapruner.anatomy.tracing import AttentionUnits, FfnUnits, trace_anatomy
from adapruner.anatomy.units import ModelAnatomy
from adapruner.calibration.pool import CalibrationPool
from adapruner.callbacks.chosen_set import write_chosen_set
from adapruner.callbacks.folder_lock import FolderLock
from adapruner.callbacks.latency_budget import meet_latency
from adapruner.callbacks.metrics import keep_earlier_metrics, trial_progress
from adapruner.callbacks.preflight import accept, check_callbacks, check_checkpoint, check_fit, check_question
from adapruner.callbacks.progress import announce, late_progress_bar, progress_bar
from adapruner.callbacks.refusals import check_folder, check_gathers, check_launcher, check_whole
from adapruner.callbacks.resumed_plan import plan_of_checkpoint
from adapruner.callbacks.search_question import identify, lengths_of, needs_of, refit_strength
from adapruner.callbacks.within_moves import Start, Within, check_beside, find_start
from adapruner.errors import ConfigurationError, DataError, ModelError, check_all
from adapruner.importance.metrics import find_metric
from adapruner.pipeline import PruningProblem, Recipe, bias_means, make_plan
from adapruner.pruning.bias_compensation import NEEDS as BIAS_NEEDS
from adapruner.pruning.budget import Budget
from adapruner.pruning.moves import MoveOptions, apply_moves
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.self_check import check_family
from adapruner.pruning.surgery import prune_model, trace_for_plan, write_widths
from adapruner.recovery.reconstruction import ReconstructionConfig, fitting_form
from adapruner.search.posing import ProblemPoser
from adapruner.search.ranks import Ranks
from adapruner.search.split import split_windows
from adapruner.search.study import SearchConfig, SearchOutcome, check_journal, run_search
from adapruner.treatment import Treatment, recipe_of, refit_plan
from adapruner.whole_files import clear_leftovers


class PruningSearchCallback(Callback):
    """Joint search over calibration data and importance metrics, then one surgery (AdaPruner, arXiv 2503.06184).

    The module must hold a Hugging Face causal LM under ``model_attribute``; the data module must offer
    ``calibration_windows`` and ``search_windows`` (:class:`adapruner.PruningDataModule` does).

    A plan is taken from, in this order: the checkpoint that training resumes from, ``plan``, ``plan.json`` in the run
    folder if it answers the same question (model, data, budget, search), and at last the search, which itself goes on
    from the journal of a run that was killed.

    Args:
        budget: how much to remove.
        search: how to search.
        reconstruction: the closed-form refit right after the surgery; ``null`` leaves it out.
        plan: a plan file to apply instead of searching.
        recipe: a fixed recipe to prune by instead of searching: a published method, or what a search found elsewhere.
        folder: where ``plan.json``, ``trials.csv`` and the journal go; the Trainer's ``default_root_dir`` when empty.
        statistics_batch_size: calibration samples in one forward and backward pass.
        model_attribute: the module's attribute that holds the language model.
        attention_units: ``kv_group`` removes a KV head with all its query heads, ``query_head`` single query heads, equally
            many of each KV head. Only where there are several query heads for each KV head does it make a difference.
        ffn_units: ``channel`` removes single channels, in a mixture of experts equally many of each; ``expert`` removes whole experts
            with their rows of the router.
        remove_layers: whole decoder layers to remove before the search of units, those of the lowest Block Influence. They count
            towards the budget; layers that it protects stay.
        hidden_fraction: fraction of hidden channels to remove before the search of units, for Llama, Mistral, Qwen2 and Qwen3.
            They count towards the budget; protected layers lose them too.
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
    ) -> None:
        super().__init__()
        if statistics_batch_size < 1:
            raise ConfigurationError(f"pruning.statistics_batch_size: expected 1 or more, got {statistics_batch_size}; give 8")
        if plan is not None and recipe is not None:
            raise ConfigurationError(f"pruning.recipe: expected a plan or a recipe, got both ({plan}); leave one out")
        self.moves = MoveOptions(remove_layers, hidden_fraction)
        check_beside(self.moves, budget, search.space, recipe)
        self.budget, self.search, self.reconstruction, self.recipe = budget, search, reconstruction, recipe
        self.plan_file, self.folder_name, self.model_attribute = plan, folder, model_attribute
        self.statistics_batch_size, self.attention_units, self.ffn_units = statistics_batch_size, attention_units, ffn_units
        self.given_plan = None if plan is None else read_plan(plan)
        self.checkpoint: str | None = None  # set by the command line when it resumes
        self.weights_follow = False  # likewise, where it goes on from the run's own checkpoint
        self.plan: PruningPlan | None = None  # about the dense model
        self.plan_within: PruningPlan | None = None  # the same, for the model that `problem` is about
        self.start: Start | None = None
        self.outcome: SearchOutcome | None = None
        self.problem: PruningProblem | None = None
        self.anatomy: ModelAnatomy | None = None
        self.identity: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.refit: float | None = None  # strength of the local refit that trials are judged after
        self.folder = Path()
        self._lock = FolderLock()

    # ---------------------------------------------------------------------------------------------- Lightning's hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Search, surgery and reconstruction, once, at the start of ``fit``."""
        if stage != "fit" or self.plan is not None:
            return
        self.folder = Path(self.folder_name or trainer.default_root_dir)
        self._check_before_loading(trainer)
        if trainer.is_global_zero:
            clear_leftovers(self.folder)
        with isolate_rng():
            self._run(trainer, pl_module)

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
        """Likewise."""
        self._lock.release()

    def state_dict(self) -> dict[str, Any]:
        """The plan, as JSON types."""
        return {"plan": self.plan.to_dict()} if self.plan else {}

    # ------------------------------------------------------------------------------------------------------ the stages
    def _run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = self.language_model(pl_module)
        check_whole(model)
        model.to(trainer.strategy.root_device)
        check_fit(trainer, pl_module, model)
        resumed = plan_of_checkpoint(self.checkpoint)
        given = resumed or self.given_plan
        anatomy = self.anatomy = trace_for_plan(model, given) if given else trace_anatomy(model, self.attention_units, self.ffn_units)
        for kind, reason in anatomy.left_whole:
            announce(f"{kind} stays whole: {reason}")
        check_family(model, anatomy)
        if resumed is not None:  # its weights are loaded by the Trainer, after the surgery
            announce(f"takes the plan {resumed.hash} from the checkpoint {self.checkpoint}: no search")
            self.given_plan = resumed
        start = self.start = find_start(trainer, model, anatomy, self.moves, self.budget, self.given_plan, self.statistics_batch_size)
        with start.entered(model) as within:
            self._fit_reconstruction(trainer, model, within.anatomy)
            self.problem = self._pose_problem(trainer, pl_module, model, within)
            plan = self._find_plan(trainer, model, within.given)
            if self.problem.latency is not None:  # every rank timed its own device: the first one's clock counts
                plan = trainer.strategy.broadcast(plan)
            Ranks().check_same_plan(plan.hash)
            plan.check(within.anatomy, self.problem.fingerprint)
        self.plan_within, self.plan = plan, start.lifted(plan)
        self._notify(trainer, pl_module, "dense")
        apply_moves(model, start.moves)
        self._cut(trainer, model, plan)
        plan = self.plan
        self._remember(pl_module, plan)
        if trainer.is_global_zero:
            plan.save(self.folder / "plan.json")
        write_chosen_set(trainer, pl_module, self.problem, plan, self.folder)
        self._notify(trainer, pl_module, "reconstructed" if self.reconstruction else "pruned")

    def _fit_reconstruction(self, trainer: Trainer, model: Any, anatomy: ModelAnatomy) -> None:
        """The local form where the family does not let the sequential one be solved: known before the search, not after it."""
        data: Any = getattr(trainer, "datamodule", None)
        if self.reconstruction is None or not hasattr(data, "calibration_windows"):
            return
        fitting = fitting_form(model, anatomy, data.calibration_windows.input_ids, self.reconstruction)
        if fitting != self.reconstruction:
            announce("reconstruction: local, since this family's layers do not simply add attention and FFN to their input")
        self.reconstruction = fitting

    def language_model(self, pl_module: LightningModule) -> Any:
        """The Hugging Face model inside the module, loaded if the module loads late.

        Raises:
            ModelError: if the attribute is missing or is not a causal LM.
        """
        pl_module.configure_model()
        model = getattr(pl_module, self.model_attribute, None)
        if model is None or not hasattr(model, "config") or not hasattr(model, "get_input_embeddings"):
            raise ModelError(
                f"model_attribute: expected a Hugging Face causal LM in {type(pl_module).__name__}.{self.model_attribute}, got "
                f"{type(model).__name__}; name the attribute that holds it, and build it in __init__ or configure_model"
            )
        return model

    def _pose_problem(self, trainer: Trainer, pl_module: LightningModule, model: Any, within: Within) -> PruningProblem:
        data: Any = getattr(trainer, "datamodule", None)
        missing = [n for n in ("calibration_windows", "search_windows") if not hasattr(data, n)]
        if missing:
            raise DataError(f"data: expected a data module with {missing[0]}, got {type(data).__name__}; use adapruner.PruningDataModule")
        name = str(getattr(pl_module, "name_or_path", "") or getattr(model.config, "_name_or_path", "") or type(model).__name__)
        fingerprint, folder, size = fingerprint_model(model), self.folder, self.statistics_batch_size
        seed, anatomy, budget = self.search.seed, within.anatomy, within.budget
        poser = ProblemPoser(model, anatomy, data, budget, name, fingerprint, folder, seed, size, progress_bar, announce)
        pool = CalibrationPool.of_windows(data.calibration_windows)
        check_all(
            lambda: check_question(poser, within.given, self.recipe, self.search.space),  # an unreachable budget is refused here
            lambda: self.search.space.check_pool(pool, list(poser.lengths)),
            lambda: split_windows(data.search_windows, self.search),
        )
        problem = poser.without_evidence()
        self.refit = refit_strength(poser, self.search, self.reconstruction)
        self.identity = identify(self, data, fingerprint)
        searches = self.given_plan is None and self.recipe is None
        if searches:
            Ranks().first_does(check_journal, self.folder, self.identity, self.search.storage)
        accept(trainer)
        keep_earlier_metrics(trainer.loggers)
        compared = [m for c in trainer.callbacks for m in getattr(c, "compared_metrics", ())]  # type: ignore[attr-defined]
        if self.given_plan is not None and not compared and not self.given_plan.output_bias:
            return problem
        needs = frozenset().union(*(find_metric(m).needs for m in compared))
        if self.given_plan is None:
            needs |= needs_of(self.search, self.recipe)
        if self.given_plan is not None and self.given_plan.output_bias:
            needs |= BIAS_NEEDS
        lengths = lengths_of(self.search, self.recipe, self.given_plan)
        problem = poser.pose(poser.pools(), needs, lengths, grams=searches and self.refit is not None)
        self.seconds["statistics"] = sum(poser.seconds.values())
        return problem

    def _find_plan(self, trainer: Trainer, model: Any, given: PruningPlan | None) -> PruningPlan:
        assert self.problem is not None
        if self.given_plan is not None and given is not None:
            if self.plan_file is not None:
                announce(f"takes the plan {self.given_plan.hash} from {self.plan_file}: no search")
            return given
        if self.recipe is not None:
            plan = make_plan(self.problem, self.recipe, {"seed": self.problem.seed, **self.identity})
            return meet_latency(model, self.problem, plan, self.recipe, self.folder, self.identity)
        from adapruner.callbacks.lora_recovery import short_recovery  # it knows this callback, in its turn

        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        again = 0 if self.search.rerank is None else self.search.rerank.recovery_steps
        recover = short_recovery(trainer, trainer.lightning_module, again)
        treatment = Treatment.of_windows(data.calibration_windows, self.reconstruction, recover)
        with trial_progress(trainer, self.search.n_trials) as on_trial, late_progress_bar("best few again") as on_candidate:
            outcome = run_search(
                model,
                self.problem,
                data.search_windows,
                self.search,
                self.folder,
                self.identity,
                on_trial,
                refit=self.refit,
                treatment=treatment,
                on_candidate=on_candidate,
            )
        self.outcome, self.seconds["search"] = outcome, outcome.seconds
        if outcome.resumed:
            announce(f"took {outcome.resumed} of {len(outcome.trials)} trials from the study in {self.folder / 'study.journal'}")
        return meet_latency(model, self.problem, outcome.plan, outcome.recipe, self.folder, self.identity)

    def _cut(self, trainer: Trainer, model: Any, plan: PruningPlan) -> None:
        assert self.problem is not None
        anatomy, started = self.problem.anatomy, time.monotonic()
        if self.reconstruction is None or self._refit_is_known(trainer):
            prune_model(model, anatomy, plan, bias_means(self.problem, recipe_of(plan)))
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        treatment = Treatment.of_windows(data.calibration_windows, self.reconstruction, None)
        with progress_bar("reconstruction", anatomy.layers) as advance:
            refit_plan(model, self.problem, plan, treatment, advance)
        write_widths(model.config, anatomy, plan)
        self.seconds["reconstruction"] = time.monotonic() - started

    def _refit_is_known(self, trainer: Trainer) -> bool:
        """Whether a checkpoint brings the weights, and nobody has to measure the refit: then the widths are enough."""
        listeners = [c for c in trainer.callbacks if hasattr(c, "on_pruning_stage")]  # type: ignore[attr-defined]
        known = all(hasattr(c, "knows_stage") and c.knows_stage(trainer, "reconstructed") for c in listeners)
        return bool(trainer.strategy.broadcast(self.weights_follow and known))

    def _remember(self, pl_module: LightningModule, plan: PruningPlan) -> None:
        self.plan = plan
        pl_module.plan = plan  # type: ignore[assignment]

    def _notify(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Other callbacks may measure the model at ``dense`` (before the cut, the plan known) and after it."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            listener = getattr(callback, "on_pruning_stage", None)
            if listener is not None:
                listener(trainer, pl_module, stage, self)

    # ------------------------------------------------------------------------------------------------- early refusals
    def _check_before_loading(self, trainer: Trainer) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        theirs = [getattr(c, "check_before_search", None) for c in callbacks]  # their own setup comes after the search
        check_all(
            lambda: check_launcher(trainer),
            lambda: check_gathers(trainer),
            lambda: check_callbacks(callbacks),
            lambda: check_checkpoint(self.checkpoint),
            *(partial(check, trainer) for check in theirs if check is not None),
        )
        check_folder(self.folder)  # it makes the folder: not where anything else is refused
        Ranks().first_does(self._lock.take, self.folder)
