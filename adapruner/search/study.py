"""The study: which recipe next, what it was worth, and going on after a kill.

Lockstep over ranks: rank 0 owns the journal, asks one trial per rank and tells their values; all ranks evaluate at the
same time. The sampler is seeded anew for every trial by the number of trials done, so that a killed and resumed search
asks for exactly the parameters of an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.calibration.spread import CalibrationSpread
from adapruner.distributed import Ranks
from adapruner.errors import AdaPrunerError, StudyError
from adapruner.evaluation.perplexity import Windows
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.post_pruning import PostPruning
from adapruner.search.config import SearchConfig
from adapruner.search.front import pareto_front, pick_from_front, write_front
from adapruner.search.journal import KILLED, OWNER, SEAL, check_journal, fail_killed, open_study, seal_of
from adapruner.search.random_samples import measure_spread
from adapruner.search.reranking import Candidate, choose_candidates, rerank
from adapruner.search.samplers import make_sampler
from adapruner.search.seed_trials import SEARCHED, SeedTrials
from adapruner.search.space import frozen_dimensions
from adapruner.search.split import split_windows
from adapruner.search.stoppers import STOPPERS, make_stopper
from adapruner.search.trial_value import Objective
from adapruner.search.trials import TrialRecord, best_of, record_of, write_csv

__all__ = ["SearchConfig", "SearchOutcome", "check_journal", "run_search"]


@dataclass(frozen=True)
class SearchOutcome:
    """The winner and the whole history."""

    plan: PruningPlan
    recipe: Recipe
    best: TrialRecord
    """The trial whose plan won: the best of the search, or of the second look at the best few."""
    trials: list[TrialRecord]
    best_fixed: tuple[TrialRecord, Recipe] | None
    """The best of the fixed points that were tried first, and its recipe: what a search has to beat."""
    importance: dict[str, float]
    """Search dimension -> share of the objective's variation it explains (PED-ANOVA)."""
    resumed: int
    """How many trials were taken over from the journal."""
    seconds: float
    candidates: list[Candidate] = field(default_factory=list)
    """The best few at the later stages, the winner first; empty where there was no second look."""
    front: list[TrialRecord] = field(default_factory=list)
    """With two objectives, the trials that no other beats in both, the smallest model first."""
    spread: CalibrationSpread | None = None
    """What the winning recipe reaches with random samples; ``None`` where that was not asked for, or all samples speak."""


def run_search(
    model: nn.Module,
    problem: PruningProblem,
    windows: Windows,
    config: SearchConfig,
    folder: Path | None,
    identity: dict[str, Any],
    on_trial: Callable[[TrialRecord, TrialRecord | None], None] | None = None,
    *,
    refit: float | None = None,
    post_pruning: PostPruning | None = None,
    on_candidate: Callable[[int, int, str], None] | None = None,
) -> SearchOutcome:
    """Runs, or goes on with, the study until it has ``n_trials`` trials, then looks at the best few again.

    The study is kept in ``folder/study.journal``, in memory without a folder.

    Args:
        model: the dense model; whole again after every trial.
        windows: the search split, ``[n, seq_len]``; its last ``rerank.held_out`` rows are for the second look alone.
        identity: what the trials' values depend on (model, data, space, ...). A journal of another identity is refused.
        on_trial: called with every finished trial and the best so far.
        refit: relative strength of the local refit that trials are judged after; ``None`` judges them as cut.
        post_pruning: what the plan will get; the best few get it before one is chosen. ``None``: the best trial wins.
        on_candidate: progress of that second look: done, in all, what.

    Raises:
        StudyError: if the journal belongs to another study or is damaged, or if too many trials fail.
    """
    ranks, started = Ranks(), time.monotonic()
    seen, kept_apart = split_windows(windows, config)
    objective = Objective(model, problem, seen, config, refit)
    study: _Study | None = None

    def start_study() -> int:
        nonlocal study
        study = _Study(config, problem, folder, identity)
        return len(study.done())

    resumed = ranks.on_rank_zero(start_study)
    done = resumed
    while done < config.n_trials:
        asked = ranks.on_rank_zero(study.ask if study else None, done, min(ranks.size, config.n_trials - done))
        value: Any = None
        if ranks.rank < len(asked):
            stop = study.should_stop if study and ranks.size == 1 else None
            value = _evaluate(model, problem, objective, asked[ranks.rank], stop)
        values = ranks.gather(value)[: len(asked)]
        records, best, done = ranks.on_rank_zero(study.tell if study else None, values)
        if on_trial:
            for record in records:
                on_trial(record, best)
    trials, importance = ranks.on_rank_zero(study.outcome if study else None)
    front = pareto_front(trials) if config.objective.pareto else []
    judge = objective if kept_apart is seen else Objective(model, problem, kept_apart, config, refit)
    best, candidates = _choose(model, problem, judge, trials, front, folder, identity, post_pruning, on_candidate)
    fixed = best_of([t for t in trials if t.name != SEARCHED])
    recipe = _recipe_of(best.params, config, problem)
    plan = make_plan(problem, recipe, {"objective": best.value, "trial": best.trial, "seed": problem.seed, **identity})
    if front and folder is not None and ranks.rank == 0:
        write_front(folder, [(t, make_plan(problem, _recipe_of(t.params, config, problem))) for t in front])
    best_fixed = None if fixed is None else (fixed, _recipe_of(fixed.params, config, problem))
    spread = measure_spread(model, problem, objective, recipe, config.random_sets, folder, identity) if config.random_sets else None
    seconds = time.monotonic() - started
    return SearchOutcome(plan, recipe, best, trials, best_fixed, importance, resumed, seconds, candidates, front, spread)


def _choose(
    model: nn.Module,
    problem: PruningProblem,
    objective: Objective,
    trials: list[TrialRecord],
    front: list[TrialRecord],
    folder: Path | None,
    identity: dict[str, Any],
    post_pruning: PostPruning | None,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[TrialRecord, list[Candidate]]:
    """The trial that wins, and what the candidates reached in the second look."""
    config = objective.config
    if front:
        return pick_from_front(front, problem.budget), []
    best = best_of(trials)
    if best is None:
        raise StudyError("search: expected one finished trial, got none; see the errors in trials.csv")
    if config.rerank is None or post_pruning is None or (post_pruning.reconstruction is None and post_pruning.recover is None):
        return best, []
    chosen = choose_candidates(trials, config.rerank.candidates)
    plans = [(t, make_plan(problem, _recipe_of(t.params, config, problem))) for t in chosen]
    found = rerank(model, problem, plans, post_pruning, objective.of_model, config.rerank, folder, identity, progress)
    return next(t for t in trials if t.trial == found[0].trial), found


def _evaluate(
    model: nn.Module,
    problem: PruningProblem,
    objective: Objective,
    asked: dict[str, Any],
    should_stop: Callable[[int, float, float], bool] | None,
) -> dict[str, Any]:
    """One trial on this rank; a failure is a value, never an exception on one rank only."""
    started = time.monotonic()
    result: dict[str, Any] = {"state": "failed", "value": None, "plan_hash": ""}
    try:
        recipe = _recipe_of(asked["params"], objective.config, problem)
        plan = make_plan(problem, recipe)
        result["plan_hash"] = plan.hash
        if objective.config.objective.pareto:
            result["cost"] = objective.cost(plan)
        parts = objective.of_plan(model, plan, recipe)
        for step, part in enumerate(parts):
            result["value"] = part.value
            if should_stop and asked["name"] == SEARCHED and should_stop(step, part.value, part.alone):
                parts.close()  # type: ignore[attr-defined]
                result["state"] = "pruned"
                break
        else:
            result["state"] = "complete" if math.isfinite(result["value"]) else "failed"
            if result["state"] == "failed":
                result["error"] = f"a value of {result['value']} {objective.blame(model, plan, recipe)}"
    except (AdaPrunerError, ValueError, ArithmeticError, RuntimeError) as error:  # out of memory is a RuntimeError
        result["error"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return {**result, "seconds": time.monotonic() - started}


def _recipe_of(params: dict[str, Any], config: SearchConfig, problem: PruningProblem) -> Recipe:
    import optuna

    return config.space.suggest(optuna.trial.FixedTrial(params), problem.calibration)


class _Study:
    """Rank 0's side: the journal, the sampler, the fixed points."""

    def __init__(self, config: SearchConfig, problem: PruningProblem, folder: Path | None, identity: dict[str, Any]) -> None:
        self.config, self.problem, self.folder = config, problem, folder
        self.fixed = SeedTrials(config.space, problem.calibration)
        self.pending: list[Any] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.objectives = 2 if config.objective.pareto else 1
        self.study = open_study(folder, identity, self.objectives, config.storage)
        self.study.pruner = make_stopper(config.early_stopping, startup=max(8, len(self.fixed)))
        self.owner = "" if config.storage is None else f"{socket.gethostname()}:{os.getpid() if folder is None else folder.resolve()}"
        fail_killed(self.study, self.owner)

    def done(self) -> list[Any]:
        """Finished trials in order, those of a killed process left out."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished() and KILLED not in t.user_attrs]

    def records(self) -> list[TrialRecord]:
        return [record_of(i, t) for i, t in enumerate(self.done())]

    def ask(self, done: int, count: int) -> list[dict[str, Any]]:
        """Parameters of the next trials; fewer than asked for where the next fixed point waits for a value."""
        finished, asked = self.records(), []
        if self.owner:  # others' trials are running
            done = sum(KILLED not in t.user_attrs for t in self.study.get_trials(deepcopy=False))
        self.pending = []
        for index in range(done, done + min(count, self.fixed.limit(done))):
            fixed = self.fixed.at(index, finished)
            name = SEARCHED
            seed, startup = self.config.seed * 100003 + index, max(10, len(self.fixed))
            self.study.sampler = make_sampler(self.config.sampler, seed, startup, self.objectives, self._frozen(index, finished))
            if fixed is not None:
                name, point = fixed
                self.study.enqueue_trial(point)
            trial = self.study.ask()
            self.config.space.suggest(trial, self.problem.calibration)
            trial.set_user_attr("name", name)
            if self.owner:
                trial.set_user_attr(OWNER, self.owner)
            self.pending.append(trial)
            asked.append({"name": name, "params": dict(trial.params)})
        return asked

    def _frozen(self, index: int, finished: list[TrialRecord]) -> dict[str, Any] | None:
        """One subspace after the other: the half that waits, or is done, stays at the best point before this half."""
        left = self.config.n_trials - len(self.fixed)
        if self.config.order == "joint" or index < len(self.fixed):
            return None
        first_half = index - len(self.fixed) < left // 2
        before = len(self.fixed) if first_half else len(self.fixed) + left // 2
        best = best_of(finished[:before])
        return None if best is None else frozen_dimensions(self.config.order, first_half, best.params)

    def should_stop(self, step: int, value: float, alone: float) -> bool:
        if self.config.objective.pareto:  # Optuna stops trials by one value alone
            return False
        self.pending[0].report(alone if STOPPERS.find(self.config.early_stopping).sees_chunks_alone else value, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few pairs say little to a rank test
            return step < self.config.chunks - 1 and bool(self.pending[0].should_prune())

    def tell(self, values: list[dict[str, Any]]) -> tuple[list[TrialRecord], TrialRecord | None, int]:
        """Records of these trials, the best of all, and how many are finished."""
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        for trial, result in zip(self.pending, values, strict=True):
            for key in ("seconds", "plan_hash", "error"):
                if key in result:
                    trial.set_user_attr(key, result[key])
            if result["value"] is not None and math.isfinite(result["value"]):
                trial.set_user_attr("value", result["value"])  # of a stopped trial Optuna keeps none
            state = states[result["state"]]
            told = [result["value"], result["cost"]] if self.config.objective.pareto else result["value"]
            told = told if state == TrialState.COMPLETE else None
            trial.set_user_attr(SEAL, seal_of(state.name, trial.params, told, result["plan_hash"]))
            self.study.tell(trial, told, state=state)
        done = self.done()
        failed = [t for t in done if t.state == TrialState.FAIL]
        if len(failed) >= self.config.max_failures:
            raise StudyError(
                f"search: expected fewer than {self.config.max_failures} failed trials, got {len(failed)}, the last with "
                f"{failed[-1].user_attrs.get('error')!r}; mend that and start again, finished trials are kept"
            )
        records, own = self.records(), {t.number for t in self.pending}
        if self.folder is not None:
            write_csv(records, self.folder)
        return [r for r, t in zip(records, done, strict=True) if t.number in own], best_of(records), len(done)

    def outcome(self) -> tuple[list[TrialRecord], dict[str, float]]:
        records = self.records()
        if self.folder is not None:
            write_csv(records, self.folder)
        return records, self._importance()

    def _importance(self) -> dict[str, float]:
        import optuna

        target = (lambda t: t.values[0]) if self.config.objective.pareto else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that few trials say little: the report shows how many there were
                importance = optuna.importance.get_param_importances(self.study, target=target)
        except (ValueError, RuntimeError):  # too few trials, or no variation
            return {}
        return {name: float(value) for name, value in importance.items() if math.isfinite(value)}
