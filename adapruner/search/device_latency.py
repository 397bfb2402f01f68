"""A latency budget is met on the device: the winning recipe's plan is timed, the table of latencies corrected, the plan made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.errors import BudgetError, ConfigurationError, PlanError
from adapruner.evaluation.cost import measure_latency
from adapruner.files.atomic import write_atomically
from adapruner.models.units import ModelStructure
from adapruner.progress import announce
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.costs.latency_table import LatencyTable, correct
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import pruned

FILE = "latency.json"
#: Rounds of measuring and correcting; how near the target is near enough, as a fraction of it; timed forwards of each round.
ROUNDS, WITHIN, REPEATS = 3, 0.03, 9


@dataclass(frozen=True)
class MeasuredChoice:
    """The choice of units whose measured latency came nearest to the target."""

    kept: dict[str, list[int]]
    """Group name -> sorted units that stay."""
    table: LatencyTable
    """The table after the last correction."""
    target_ms: float
    measured_ms: float
    rounds: int
    """Number of plans that were measured."""


def read_or_measure_table(file: Path | None, key: str, measure: Callable[[], LatencyTable], write: bool) -> LatencyTable:
    """The table of a run folder if it was made for this model and budget, so that a resumed search has the same costs."""
    try:
        record: Any = {"key": None} if file is None else json.loads(file.read_text())
        if record["key"] == key:
            return LatencyTable.from_dict(record["table"])
    except (OSError, ValueError, KeyError, TypeError, ConfigurationError):
        pass
    table = measure()
    if write and file is not None:
        write_atomically(file, json.dumps({"key": key, "table": table.to_dict()}, indent=1) + "\n")
    return table


def meet_latency(
    model: Any, problem: PruningProblem, plan: PruningPlan, recipe: Recipe, folder: Path | None, identity: dict[str, Any]
) -> PruningPlan:
    """The recipe's plan that meets the budget when it is timed; ``plan`` itself where the budget is no latency.

    What an earlier attempt of the same run timed, in ``folder``, is taken as it is: another timing would give another plan.
    """
    if problem.latency is None:
        return plan
    earlier = None if folder is None else measured_before(folder / "plan.json", plan, identity)
    if folder is not None and earlier is not None:
        announce(f"latency: takes the plan {earlier.hash} that was timed before, from {folder / 'plan.json'}")
        return earlier
    found, choice = meet_on_device(model, problem, recipe, problem.latency)
    announce(
        f"latency: {choice.measured_ms:.2f} ms measured, {choice.target_ms:.2f} ms asked for, dense "
        f"{problem.latency.whole_ms:.2f} ms; {choice.rounds} measured plan{'s' if choice.rounds > 1 else ''}"
    )
    return replace(found, provenance={**plan.provenance, **found.provenance})


def meet_on_device(model: nn.Module, problem: PruningProblem, recipe: Recipe, table: LatencyTable) -> tuple[PruningPlan, MeasuredChoice]:
    """The recipe's plan at the measured latency, and how near it came. The model is whole again afterwards.

    A plan's time is taken between two of the dense model, so that a machine that slows down slows both.

    Raises:
        BudgetError: if no plan reaches the target even on paper.
    """
    plans: dict[str, PruningPlan] = {}

    def choose(costs: UnitCosts) -> dict[str, list[int]]:
        plan = make_plan(replace(problem, costs=costs), recipe)
        plans[_key(plan.kept)] = plan
        return plan.kept

    def forward_ms() -> float:
        found = measure_latency({"model": model}, table.seq_len, table.batch_size, REPEATS)
        return float(found["model"].prefill_ms)

    def measure(kept: dict[str, list[int]]) -> float:
        before = forward_ms()
        with pruned(model, problem.structure, replace(plans[_key(kept)], output_bias=False)):
            inside = forward_ms()
        return table.whole_ms * inside / ((before + forward_ms()) / 2)

    choice = meet_by_rounds(problem.budget, problem.structure, table, choose, measure)
    plan = plans[_key(choice.kept)]
    facts = {"target_ms": choice.target_ms, "measured_ms": choice.measured_ms, "rounds": choice.rounds, "device": table.device}
    return replace(plan, provenance={**plan.provenance, "latency": facts}), choice


def meet_by_rounds(
    budget: Budget,
    structure: ModelStructure,
    table: LatencyTable,
    choose: Callable[[UnitCosts], dict[str, list[int]]],
    measure: Callable[[dict[str, list[int]]], float],
    *,
    rounds: int = ROUNDS,
    within: float = WITHIN,
) -> MeasuredChoice:
    """Chooses units by the table, measures them, corrects the table and chooses again: the choice nearest to the target.

    The first that is ``within`` the target, as a fraction of it, is taken at once. A corrected table may say that no plan reaches the
    target; then the nearest measured one is returned, and ``measured_ms`` says how far it is.

    Args:
        choose: from costs to kept units, such as a call of ``allocate`` with everything else bound.
        measure: ms of one forward of the model with these units alone, at the table's sizes. Machines drift: take it beside
            the dense model, in turns, and give ``table.whole_ms * pruned / dense``.
        rounds: 1 or more.

    Raises:
        BudgetError: if the table as given says that no plan reaches the target.
    """
    best: MeasuredChoice | None = None
    for number in range(1, rounds + 1):
        try:
            costs = budget.costs(structure, latency=table)
            kept = choose(costs)
        except BudgetError:
            if best is None:
                raise
            break
        target, predicted, measured = costs.dense - costs.remove, table.predict(kept, structure), measure(kept)
        prunes = predicted < table.whole_ms
        if prunes:
            table = correct(table, predicted, measured)
        if best is None or abs(measured - target) < abs(best.measured_ms - target):
            best = MeasuredChoice(kept, table, target, measured, number)
        best = replace(best, table=table, rounds=number)
        if abs(best.measured_ms - target) <= within * target or not prunes:
            break
    assert best is not None
    return best


def measured_before(file: Path, plan: PruningPlan, identity: dict[str, Any]) -> PruningPlan | None:
    """The plan that an earlier attempt at this very question timed and kept: the clock would not say the same twice."""
    try:
        found = read_plan(file)
    except PlanError:
        return None
    asked, answered = ({"recipe": p.recipe, **{k: p.provenance.get(k) for k in identity}} for p in (plan, found))
    same = json.loads(json.dumps(asked)) == json.loads(json.dumps(answered))
    return found if same and found.provenance.get("latency") is not None else None


def _key(kept: dict[str, list[int]]) -> str:
    return json.dumps(sorted(kept.items()))
