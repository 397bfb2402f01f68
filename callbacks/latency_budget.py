"""A latency budget is met by the clock, not only by the model of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from adapruner.callbacks.progress import announce
from adapruner.pipeline import PruningProblem, Recipe
from adapruner.pruning.plan import PruningPlan
from adapruner.search.device_latency import measured_before, meet_on_device


def meet_latency(
    model: Any, problem: PruningProblem, plan: PruningPlan, recipe: Recipe, folder: Path, identity: dict[str, Any]
) -> PruningPlan:
    """The recipe's plan that meets the budget when it is timed; ``plan`` itself where the budget is no latency.

    What an earlier attempt of the same run timed, in ``folder``, is taken as it is: another timing would give another plan.
    """
    if problem.latency is None:
        return plan
    earlier = measured_before(folder / "plan.json", plan, identity)
    if earlier is not None:
        announce(f"latency: takes the plan {earlier.hash} that was timed before, from {folder / 'plan.json'}")
        return earlier
    found, choice = meet_on_device(model, problem, recipe, problem.latency)
    announce(
        f"latency: {choice.measured_ms:.2f} ms measured, {choice.target_ms:.2f} ms asked for, dense "
        f"{problem.latency.whole_ms:.2f} ms; {choice.rounds} measured plan{'s' if choice.rounds > 1 else ''}"
    )
    return replace(found, provenance={**plan.provenance, **found.provenance})
