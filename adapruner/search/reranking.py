"""Re-ranking: the best few trials after the sequential reconstruction, and after a short recovery.

Their order is often another there. Successive halving (Jamieson and Talwalkar, arXiv
1502.07943): all candidates are reconstructed, the better part of them is recovered for a few steps, the best of those wins.
The best seed trial is always a candidate, so that the winner is never below it at the stage that decides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.errors import AdaPrunerError
from adapruner.files.value_cache import ValueCache
from adapruner.pruning.fixed_recipe import SEARCHED
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem
from adapruner.recovery.post_pruning import PostPruning, reconstructed
from adapruner.search.config import RerankConfig
from adapruner.search.trials import TrialRecord, best_of

FILE = "reranking.json"


@dataclass
class Candidate:
    """One trial's plan at the later stages; every value is the objective's measure on the search split, nats per token."""

    trial: int
    name: str
    plan_hash: str
    searched: float
    """In the search."""
    reconstructed: float | None = None
    recovered: float | None = None

    @property
    def final(self) -> tuple[int, float, float]:
        """Sorts candidates: those that came further first, then by the value there, then by the search's."""
        value = self.recovered if self.recovered is not None else self.reconstructed
        return (0 if self.recovered is not None else 1, math.inf if value is None else value, self.searched)


def choose_candidates(records: list[TrialRecord], count: int) -> list[TrialRecord]:
    """The best complete trials with plans of their own, the best seed trial among them."""
    complete = sorted((r for r in records if r.state == "complete" and r.value is not None), key=lambda r: (r.value, r.trial))
    distinct = list({r.plan_hash: r for r in reversed(complete)}.values())[::-1]
    chosen = distinct[:count]
    fixed = best_of([r for r in complete if r.name != SEARCHED])
    if fixed is not None and fixed.plan_hash not in {r.plan_hash for r in chosen}:
        chosen = [*chosen[: max(0, count - 1)], fixed]
    return chosen


def rerank(
    model: nn.Module,
    problem: PruningProblem,
    plans: list[tuple[TrialRecord, PruningPlan]],
    post_pruning: PostPruning,
    measure: Callable[[nn.Module], float],
    config: RerankConfig,
    folder: Path | None,
    identity: dict[str, Any],
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Candidate]:
    """All candidates with what they reached, the winner first. Ranks share the work; what a killed run measured is kept.

    Args:
        post_pruning: its ``recover`` does the short recovery, ``None`` decides after the reconstruction.
        identity: what the values depend on, beside the plans.
        progress: called with the number of measurements done, their number in all, and the candidate's name.
    """
    cache = ValueCache(None if folder is None else folder / FILE, identity)
    found = {r.plan_hash: Candidate(r.trial, r.name, r.plan_hash, float(r.value or math.inf)) for r, _ in plans}
    plan_of = {r.plan_hash: plan for r, plan in plans}
    going_on = max(1, math.ceil(config.keep * len(found))) if post_pruning.recover else 0
    total = len(found) + going_on

    def run(stage: str, hashes: list[str], before: int) -> None:
        def value(plan_hash: str) -> float:
            return _measure(model, problem, plan_of[plan_hash], post_pruning, stage, measure)

        def shown(done: int, plan_hash: str) -> None:
            if progress:
                progress(before + done, total, f"{found[plan_hash].name} {stage}")

        for plan_hash, reached in zip(hashes, cache.measure(stage, hashes, value, shown), strict=True):
            setattr(found[plan_hash], stage, reached)

    run("reconstructed", list(found), 0)
    if going_on:
        run("recovered", sorted(found, key=lambda plan_hash: found[plan_hash].final)[:going_on], len(found))
    return sorted(found.values(), key=lambda c: (*c.final, c.trial))


def _measure(
    model: nn.Module,
    problem: PruningProblem,
    plan: PruningPlan,
    post_pruning: PostPruning,
    stage: str,
    measure: Callable[[nn.Module], float],
) -> float:
    """A failure is an infinite value: it must not end a run whose search is done."""
    try:
        with reconstructed(model, problem, plan, post_pruning):
            if stage == "reconstructed" or post_pruning.recover is None:
                return measure(model)
            return measure(post_pruning.recover(copy.deepcopy(model)))
    except (AdaPrunerError, ArithmeticError, RuntimeError):
        return math.inf


def to_rows(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """JSON rows for the report, the winner first."""
    return [asdict(c) for c in candidates]
