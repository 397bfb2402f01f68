"""The search: trials of recipes, their values, and the one that wins; a killed search goes on where it was.

Lockstep over ranks: rank 0 owns the study (:mod:`adapruner.search.optuna_study`), asks one trial per rank and tells their values; all
ranks evaluate at the same time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.calibration.spread import CalibrationSpread
from adapruner.distributed import Ranks
from adapruner.errors import AdaPrunerError, StudyError
from adapruner.evaluation.perplexity import Windows
from adapruner.pruning.fixed_recipe import KEY as FIXED_RECIPE
from adapruner.pruning.fixed_recipe import SEARCHED
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.configuration import Ridge
from adapruner.recovery.post_pruning import PostPruning
from adapruner.search.config import SearchConfig
from adapruner.search.front import pareto_front, pick_from_front, write_front
from adapruner.search.journal import check_journal
from adapruner.search.optuna_study import OptunaStudy
from adapruner.search.random_samples import measure_spread
from adapruner.search.reranking import Candidate, choose_candidates, rerank
from adapruner.search.split import split_windows
from adapruner.search.trial_value import Objective
from adapruner.search.trials import TrialRecord, best_of

__all__ = ["SearchConfig", "SearchOutcome", "check_journal", "run_search"]


@dataclass(frozen=True)
class SearchOutcome:
    """The winner and the whole history."""

    plan: PruningPlan
    recipe: Recipe
    best: TrialRecord
    """The trial whose plan won: the best of the search, or of the re-ranking."""
    trials: list[TrialRecord]
    best_fixed: tuple[TrialRecord, Recipe] | None
    """The best of the seed trials, and its recipe: what a search has to beat."""
    importance: dict[str, float]
    """Search dimension -> share of the objective's variation it explains (PED-ANOVA)."""
    resumed: int
    """How many trials were taken over from the journal."""
    seconds: float
    candidates: list[Candidate] = field(default_factory=list)
    """The best few at the later stages, the winner first; empty where there was no re-ranking."""
    front: list[TrialRecord] = field(default_factory=list)
    """With two objectives, the trials that no other beats in both, the smallest model first."""
    spread: CalibrationSpread | None = None
    """What the winning recipe reaches with random samples; ``None`` where that was not asked for, or it has all samples."""


def run_search(
    model: nn.Module,
    problem: PruningProblem,
    windows: Windows,
    config: SearchConfig,
    folder: Path | None,
    identity: dict[str, Any],
    on_trial: Callable[[TrialRecord, TrialRecord | None], None] | None = None,
    *,
    refit: Ridge | None = None,
    post_pruning: PostPruning | None = None,
    on_candidate: Callable[[int, int, str], None] | None = None,
) -> SearchOutcome:
    """Runs, or goes on with, the study until it has ``n_trials`` trials, then looks at the best few again.

    Args:
        model: the dense model; whole again after every trial.
        windows: the search split, ``[n, seq_len]``; its last ``rerank.held_out`` rows are for the re-ranking alone.
        folder: keeps the study in ``study.journal``; ``None`` keeps it in memory and writes nothing.
        identity: what the trials' values depend on (model, data, space, ...). A journal of another identity is refused.
        on_trial: called with every finished trial and the best so far.
        refit: ridge of the local refit that trials are judged after; ``None`` judges them as pruned.
        post_pruning: what the plan will get; the best few get it before one is chosen. ``None``: the best trial wins.
        on_candidate: progress of the re-ranking: done, in all, what.

    Raises:
        StudyError: if the journal belongs to another study or is damaged, or if too many trials fail.
    """
    started = time.monotonic()
    seen, kept_apart = split_windows(windows, config)
    objective = Objective(model, problem, seen, config, refit)
    trials, importance, resumed = _run_trials(model, problem, objective, folder, identity, on_trial)
    front = pareto_front(trials) if config.objective.pareto else []
    judge = objective if kept_apart is seen else Objective(model, problem, kept_apart, config, refit)
    best, candidates = _choose(model, problem, judge, trials, front, folder, identity, post_pruning, on_candidate)
    recipe = config.space.recipe(best.params)
    plain = fixed_recipe(best, trials)
    known = {"objective": best.value, "trial": best.trial, "seed": problem.seed, **({} if plain is None else {FIXED_RECIPE: plain})}
    plan = make_plan(problem, recipe, {**known, **identity})
    if front and folder is not None and Ranks().rank == 0:
        write_front(folder, [(t, make_plan(problem, config.space.recipe(t.params))) for t in front])
    fixed = best_of([t for t in trials if t.name != SEARCHED])
    best_fixed = None if fixed is None else (fixed, config.space.recipe(fixed.params))
    spread = measure_spread(model, problem, objective, recipe, config.random_sets, folder, identity) if config.random_sets else None
    seconds = time.monotonic() - started
    return SearchOutcome(plan, recipe, best, trials, best_fixed, importance, resumed, seconds, candidates, front, spread)


def fixed_recipe(best: TrialRecord, trials: list[TrialRecord]) -> str | None:
    """The winner itself, else a seed trial of the same plan."""
    same = [best, *(t for t in trials if t.plan_hash and t.plan_hash == best.plan_hash)]
    return next((t.name for t in same if t.name != SEARCHED), None)


def _run_trials(
    model: nn.Module,
    problem: PruningProblem,
    objective: Objective,
    folder: Path | None,
    identity: dict[str, Any],
    on_trial: Callable[[TrialRecord, TrialRecord | None], None] | None,
) -> tuple[list[TrialRecord], dict[str, float], int]:
    """All trials, the importance of each dimension, and how many trials were there before."""
    ranks, config = Ranks(), objective.config
    study: OptunaStudy | None = None

    def start_study() -> int:
        nonlocal study
        study = OptunaStudy(config, problem, folder, identity)
        study.warn_of_few_trials()
        return len(study.done())

    done = resumed = ranks.on_rank_zero(start_study)
    while done < config.n_trials:
        asked = ranks.on_rank_zero(study.ask if study else None, done, min(ranks.size, config.n_trials - done))
        value: Any = None
        if ranks.rank < len(asked):
            stop = study.should_stop if study and ranks.size == 1 else None
            value = _evaluate(model, problem, objective, asked[ranks.rank], stop)
        records, best, done = ranks.on_rank_zero(study.tell if study else None, ranks.gather(value)[: len(asked)])
        if on_trial:
            for record in records:
                on_trial(record, best)
    trials, importance = ranks.on_rank_zero(study.outcome if study else None)
    return trials, importance, resumed


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
    """The trial that wins, and what the candidates reached in the re-ranking."""
    config = objective.config
    if front:
        return pick_from_front(front, problem.budget), []
    best = best_of(trials)
    if best is None:
        raise StudyError("search: expected one finished trial, got none; see the errors in trials.csv")
    if config.rerank is None or post_pruning is None or (post_pruning.reconstruction is None and post_pruning.recover is None):
        return best, []
    chosen = choose_candidates(trials, config.rerank.candidates)
    plans = [(t, make_plan(problem, config.space.recipe(t.params))) for t in chosen]
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
        recipe = objective.config.space.recipe(asked["params"])
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
                result["error"] = f"a value of {result['value']} {objective.locate_failure(model, plan, recipe)}"
    except (AdaPrunerError, ValueError, ArithmeticError, RuntimeError) as error:  # out of memory is a RuntimeError
        result["error"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return {**result, "seconds": time.monotonic() - started}
