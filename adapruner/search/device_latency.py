"""A latency budget is met on the device: the winning recipe's plan is timed, the model of latency corrected, the plan made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.errors import ConfigurationError, PlanError
from adapruner.evaluation.cost import measure_latency
from adapruner.files.atomic import write_atomically
from adapruner.models.latency import LatencyTable
from adapruner.progress import announce
from adapruner.pruning.latency_rounds import MeasuredChoice
from adapruner.pruning.latency_rounds import meet_latency as meet_by_rounds
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import pruned

FILE = "latency.json"


def read_or_measure_table(file: Path | None, key: str, measure: Callable[[], LatencyTable], write: bool) -> LatencyTable:
    """The table of a run folder if it was made for this model and budget, so that a resumed search has the same prices."""
    try:
        record = {"key": None} if file is None else json.loads(file.read_text())
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


def meet_on_device(
    model: nn.Module, problem: PruningProblem, recipe: Recipe, table: LatencyTable, *, rounds: int = 3, repeats: int = 9
) -> tuple[PruningPlan, MeasuredChoice]:
    """The recipe's plan at the measured latency, and how near it came. The model is whole again afterwards.

    A plan's time is taken between two of the dense model, so that a machine that slows down slows both.

    Raises:
        BudgetError: if no plan reaches the target even on paper.
    """
    plans: dict[str, PruningPlan] = {}

    def choose(costs: Any) -> dict[str, list[int]]:
        plan = make_plan(replace(problem, costs=costs), recipe)
        plans[_key(plan.kept)] = plan
        return plan.kept

    def forward_ms() -> float:
        found = measure_latency({"model": model}, table.seq_len, table.batch_size, repeats)
        return float(found["model"].prefill_ms)

    def measure(kept: dict[str, list[int]]) -> float:
        before = forward_ms()
        with pruned(model, problem.structure, replace(plans[_key(kept)], output_bias=False)):
            inside = forward_ms()
        return table.whole_ms * inside / ((before + forward_ms()) / 2)

    choice = meet_by_rounds(problem.budget, problem.structure, table, choose, measure, rounds=rounds)
    plan = plans[_key(choice.kept)]
    facts = {"target_ms": choice.target_ms, "measured_ms": choice.measured_ms, "rounds": choice.rounds, "device": asdict(table)["device"]}
    return replace(plan, provenance={**plan.provenance, "latency": facts}), choice


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
