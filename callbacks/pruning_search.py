"""Searches which units to remove, removes them, and refits what is left: all before the Trainer's first step.

Everything happens in ``setup("fit")``: data and collectives are there, the model is not yet wrapped or bound to an
optimizer. (In ``on_fit_start`` the optimizer would silently hold parameters that no longer exist.)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from adapruner._version import __version__
from adapruner.anatomy.fingerprint import fingerprint_model
from adapruner.anatomy.tracing import trace_anatomy
from adapruner.anatomy.units import ModelAnatomy
from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.callbacks.progress import announce, progress_bar
from adapruner.errors import ConfigurationError, DataError, ModelError
from adapruner.importance.metrics import find_metric
from adapruner.importance.statistics import UnitStatistics, collect_statistics
from adapruner.pipeline import PruningProblem
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.surgery import prune_model, write_widths
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from adapruner.search.study import SearchConfig, SearchOutcome, check_journal, run_search
from adapruner.search.trials import TrialRecord

_REFUSED_LAUNCHERS = ("spawn", "fork", "forkserver")


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
        folder: where ``plan.json``, ``trials.csv`` and the journal go; the Trainer's ``default_root_dir`` when empty.
        statistics_batch_size: calibration samples in one forward and backward pass.
        model_attribute: the module's attribute that holds the language model.
    """

    def __init__(
        self,
        budget: Budget = Budget(),
        search: SearchConfig = SearchConfig(),
        reconstruction: ReconstructionConfig | None = ReconstructionConfig(),
        plan: str | None = None,
        folder: str | None = None,
        statistics_batch_size: int = 8,
        model_attribute: str = "model",
    ) -> None:
        super().__init__()
        if statistics_batch_size < 1:
            raise ConfigurationError(f"pruning.statistics_batch_size: expected 1 or more, got {statistics_batch_size}; give 8")
        self.budget, self.search, self.reconstruction = budget, search, reconstruction
        self.plan_file, self.folder_name, self.model_attribute = plan, folder, model_attribute
        self.statistics_batch_size = statistics_batch_size
        self.given_plan = None if plan is None else read_plan(plan)
        self.checkpoint: str | None = None  # set by the command line when it resumes
        self.plan: PruningPlan | None = None
        self.outcome: SearchOutcome | None = None
        self.problem: PruningProblem | None = None
        self.anatomy: ModelAnatomy | None = None
        self.identity: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.folder = Path()

    # ---------------------------------------------------------------------------------------------- Lightning's hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Search, surgery and reconstruction, once, at the start of ``fit``."""
        if stage != "fit" or self.plan is not None:
            return
        self._check_launcher(trainer)
        self.folder = Path(self.folder_name or trainer.default_root_dir)
        self._check_folder()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            check = getattr(callback, "check_before_search", None)  # their own setup comes after the search
            if check is not None:
                check(trainer)
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

    def state_dict(self) -> dict[str, Any]:
        """The plan, as JSON types."""
        return {"plan": self.plan.to_dict()} if self.plan else {}

    # ------------------------------------------------------------------------------------------------------ the stages
    def _run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = self.language_model(pl_module)
        model.to(trainer.strategy.root_device)
        anatomy = self.anatomy = trace_anatomy(model)
        resumed = self._plan_of_checkpoint()
        if resumed is not None:  # its weights are loaded by the Trainer, after the surgery
            announce(f"takes the plan {resumed.hash} from the checkpoint {self.checkpoint}: no search")
            self.given_plan = resumed
        self.problem = self._pose_problem(trainer, pl_module, model, anatomy)
        plan = self._find_plan(trainer, model)
        plan.check(anatomy, self.problem.fingerprint)
        plan = trainer.strategy.broadcast(plan)
        self.plan = plan
        self._notify(trainer, pl_module, "dense")
        self._cut(trainer, model, plan)
        self._remember(pl_module, plan)
        if trainer.is_global_zero:
            plan.save(self.folder / "plan.json")
        self._notify(trainer, pl_module, "reconstructed" if self.reconstruction else "pruned")

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

    def _pose_problem(self, trainer: Trainer, pl_module: LightningModule, model: Any, anatomy: Any) -> PruningProblem:
        data: Any = getattr(trainer, "datamodule", None)
        missing = [n for n in ("calibration_windows", "search_windows") if not hasattr(data, n)]
        if missing:
            raise DataError(f"data: expected a data module with {missing[0]}, got {type(data).__name__}; use adapruner.PruningDataModule")
        self.budget.parameters_to_remove(anatomy)  # an unreachable budget is refused before anything heavy
        windows = data.calibration_windows
        fingerprint = fingerprint_model(model)
        pool = CalibrationPool(CalibrationGroups(tuple(windows.source_names), windows.source_index))
        self.identity = self._identify(data, fingerprint)
        if self.given_plan is None and trainer.is_global_zero:
            check_journal(self.folder, self.identity)
        compared = [m for c in trainer.callbacks for m in getattr(c, "compared_metrics", ())]  # type: ignore[attr-defined]
        if self.given_plan is not None and not compared:  # nothing will be scored: the pass over the pool is saved
            nothing = torch.zeros(0)
            statistics = UnitStatistics(0, nothing, nothing)
        else:
            statistics = self._statistics(model, anatomy, windows, fingerprint, compared)
        name = str(getattr(pl_module, "name_or_path", "") or getattr(model.config, "_name_or_path", "") or type(model).__name__)
        return PruningProblem(anatomy, statistics, pool, self.budget, name, fingerprint, self.search.seed)

    def _statistics(self, model: Any, anatomy: Any, windows: Any, fingerprint: str, compared: list[str]) -> UnitStatistics:
        """From the cache in the run folder when it was made of this model and these samples, else one pass over the pool."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        needs = frozenset().union(*(find_metric(m).needs for m in [*self.search.space.metrics, *compared]))
        key = f"1:{fingerprint}:{windows.fingerprint}:{','.join(sorted(needs))}"
        cache, started = self.folder / "statistics.safetensors", time.monotonic()
        try:
            with safe_open(cache, "pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    announce(f"takes the statistics of {len(windows.input_ids)} calibration samples from {cache}")
                    self.seconds["statistics"] = 0.0
                    return UnitStatistics.from_tensors({n: file.get_tensor(n) for n in file.keys()})  # noqa: SIM118
        except Exception:  # absent or damaged: collected again
            pass
        with progress_bar("statistics", len(windows.input_ids)) as advance:
            statistics = collect_statistics(model, anatomy, windows, needs=needs, batch_size=self.statistics_batch_size, progress=advance)
        self.seconds["statistics"] = time.monotonic() - started
        if _is_first_rank():
            temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
            save_file(statistics.to_tensors(), temporary, {"key": key})
            temporary.chmod(0o644)  # safetensors writes for the owner alone
            temporary.replace(cache)
        return statistics

    def _find_plan(self, trainer: Trainer, model: Any) -> PruningPlan:
        assert self.problem is not None
        if self.given_plan is not None:
            if self.plan_file is not None:
                announce(f"takes the plan {self.given_plan.hash} from {self.plan_file}: no search")
            return self.given_plan
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with self._trial_progress(trainer) as on_trial:
            outcome = run_search(model, self.problem, data.search_windows, self.search, self.folder, self.identity, on_trial)
        self.outcome, self.seconds["search"] = outcome, outcome.seconds
        if outcome.resumed:
            announce(f"took {outcome.resumed} of {len(outcome.trials)} trials from the study in {self.folder / 'study.journal'}")
        return outcome.plan

    def _identify(self, data: Any, fingerprint: str) -> dict[str, Any]:
        """Everything a trial's value depends on, apart from its own parameters."""
        return {
            "model": fingerprint,
            "calibration data": data.calibration_windows.fingerprint,
            "search data": data.search_windows.fingerprint,
            "budget": asdict(self.budget),
            "space": self.search.space.to_dict(),
            "sampler": [self.search.sampler, self.search.seed, self.search.early_stopping, self.search.chunks],
            "code version": __version__,
        }

    @contextmanager
    def _trial_progress(self, trainer: Trainer) -> Iterator[Any]:
        with progress_bar("search", self.search.n_trials) as advance:

            def on_trial(record: TrialRecord, best: TrialRecord | None) -> None:
                shown = "" if best is None or best.value is None else f"best {best.value:.4f} nats/token (trial {best.trial}, {best.name})"
                advance(record.trial + 1, shown)
                values = {
                    "search/value": record.value,
                    "search/best": None if best is None else best.value,
                    "search/seconds": record.seconds,
                }
                for logger in trainer.loggers:
                    logger.log_metrics({k: v for k, v in values.items() if v is not None}, step=record.trial)

            yield on_trial

    def _cut(self, trainer: Trainer, model: Any, plan: PruningPlan) -> None:
        assert self.problem is not None
        anatomy, started = self.problem.anatomy, time.monotonic()
        if self.reconstruction is None:
            prune_model(model, anatomy, plan)
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        weights = self.problem.calibration.sample_weights(CalibrationChoice.from_dict(plan.recipe.get("calibration")))
        with progress_bar("reconstruction", anatomy.layers) as advance:
            prune_and_reconstruct(
                model, anatomy, plan, data.calibration_windows.input_ids, self.reconstruction, sample_weights=weights, progress=advance
            )
        write_widths(model.config, anatomy, plan)
        self.seconds["reconstruction"] = time.monotonic() - started

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
    def _plan_of_checkpoint(self) -> PruningPlan | None:
        if self.checkpoint is None or not Path(self.checkpoint).is_file():
            return None
        from adapruner.module import PLAN_KEY

        record = torch.load(self.checkpoint, map_location="cpu", mmap=True, weights_only=True)
        plan = record.get(PLAN_KEY) or next(
            (s["plan"] for s in record.get("callbacks", {}).values() if isinstance(s, dict) and "plan" in s), None
        )
        return None if plan is None else read_plan(plan)

    def _check_launcher(self, trainer: Trainer) -> None:
        launcher = str(getattr(trainer.strategy, "_start_method", "") or getattr(trainer.strategy.launcher, "_start_method", ""))
        if launcher in _REFUSED_LAUNCHERS:
            raise ConfigurationError(
                f"trainer.strategy: expected a launcher that starts whole processes, got one that uses {launcher!r}; "
                "choose ddp, or start the processes with torchrun"
            )

    def _check_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".write-test.{os.getpid()}"
            probe.write_text(json.dumps({}))
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"folder: expected a folder that can be written, got {self.folder} ({error.strerror}); choose another"
            ) from error


def _is_first_rank() -> bool:
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_rank() == 0
