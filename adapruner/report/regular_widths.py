"""What regular FFN widths cost and gain: the run's own recipe at any width, beside the plan that it gave."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

from torch import nn

from adapruner.errors import BudgetError
from adapruner.evaluation.timing import WARM_UP_ROUNDS, time_prefill
from adapruner.models.forward import evaluation_mode
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.post_pruning import pruned_only
from adapruner.search.find_plan import FoundPlan
from adapruner.search.score import ScoredModel

#: What allocations round to by themselves; multiples of less are regular by chance.
_MULTIPLES = (64, 32, 16, 8)


def at_any_width(scored: ScoredModel, found: FoundPlan) -> Recipe | None:
    """The run's recipe with FFN of any width, where that makes another plan; ``None`` where it does not, or there is no recipe."""
    recipe = scored.options.recipe if found.outcome is None else found.outcome.recipe
    if recipe is None or scored.given is not None or recipe.sequential or not regular_multiple(scored.problem, found.remaining):
        return None
    if scored.options.rounds > 1:  # the recipe is the last round's alone
        return None
    if scored.problem.latency is not None:  # the plan met it on the clock, by corrections that another plan would not have
        return None
    loose = replace(recipe, allocation=replace(recipe.allocation, round_to=1))
    try:
        plan = make_plan(scored.problem, loose)
    except BudgetError:
        return None
    return None if plan.kept == found.remaining.kept else loose


def regular_multiple(problem: PruningProblem, plan: PruningPlan) -> int:
    """The largest of 64, 32, 16 and 8 that divides the width of every pruned FFN, of each expert in a mixture; 0 where none does."""
    pruned = [g for g in problem.structure.groups if g.kind == "ffn" and not plan.keeps_all(g)]
    if not pruned or any(g.expert_units for g in pruned):
        return 0
    common = math.gcd(*(len(plan.kept[g.name]) // g.sets for g in pruned))
    return next((multiple for multiple in _MULTIPLES if common % multiple == 0), 0)


def time_widths(model: nn.Module, problem: PruningProblem, plan: PruningPlan, loose: Recipe, seq_len: int, repeats: int) -> dict[str, Any]:
    """One forward over ``[1, seq_len]`` tokens at the plan's widths and at any, in turns; the model is dense before and after.

    Returns:
        ``multiple``, and medians of the times in milliseconds: ``regular_ms``, ``any_ms``.
    """
    plans = {"regular_ms": plan, "any_ms": make_plan(problem, loose)}
    rounds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(WARM_UP_ROUNDS + repeats):
        for name, one in plans.items():
            with pruned_only(model, problem, one), evaluation_mode(model):
                rounds[name].append(time_prefill(model, seq_len, 1))
    times = {name: statistics.median(found[WARM_UP_ROUNDS:]) for name, found in rounds.items()}
    return {"multiple": regular_multiple(problem, plan), **times}
