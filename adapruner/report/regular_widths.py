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

#: Widths that are multiples of less are regular by chance.
_LEAST = 8


def at_any_width(scored: ScoredModel, found: FoundPlan) -> Recipe | None:
    """The run's recipe with FFN of any width, where that makes another plan; ``None`` where it does not, or there is no recipe."""
    recipe = scored.options.recipe if found.outcome is None else found.outcome.recipe
    if recipe is None or scored.given is not None or recipe.sequential or regular_multiple(scored.problem, found.remaining) < _LEAST:
        return None
    loose = replace(recipe, allocation=replace(recipe.allocation, round_to=1))
    try:
        plan = make_plan(scored.problem, loose)
    except BudgetError:
        return None
    return None if plan.kept == found.remaining.kept else loose


def regular_multiple(problem: PruningProblem, plan: PruningPlan) -> int:
    """What all FFN widths of a plan are multiples of; 0 where no FFN is pruned."""
    ffn = {g.name: g.units for g in problem.structure.groups if g.kind == "ffn"}
    return math.gcd(*(len(plan.kept[name]) for name, units in ffn.items() if len(plan.kept[name]) < units))


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
