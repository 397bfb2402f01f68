"""A latency budget is met on the device: the winning recipe's plan is timed, the table of latencies corrected, the plan made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.errors import BudgetError, ConfigurationError, PlanError
from adapruner.evaluation.cost import hardware_of, measure_latency
from adapruner.files.atomic import write_atomically
from adapruner.files.digests import opened, sealed
from adapruner.models.units import ModelStructure
from adapruner.progress import announce
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.costs.latency_table import LatencyTable, correct
from adapruner.pruning.plan import PruningPlan, plan_of_widths, read_plan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import pruned

FILE = "latency.json"
#: Rounds of measuring and correcting; how near the target is near enough, as a fraction of it; timed forwards of each round.
ROUNDS, WITHIN, REPEATS = 3, 0.03, 9
#: Where a width makes no difference that could be measured: all units together cost this part of the forward.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class MeasuredPlan:
    """The plan whose measured latency came nearest to the target."""

    plan: PruningPlan
    table: LatencyTable
    """The table after the last correction."""
    target_ms: float
    measured_ms: float
    rounds: int
    """Number of plans that were measured."""


def read_or_measure_table(file: Path | None, key: str, measure: Callable[[], LatencyTable], write: bool) -> LatencyTable:
    """The table of a run folder if it was made for this model and budget, so that a resumed search has the same costs."""
    try:
        record: Any = {"key": None} if file is None else opened(json.loads(file.read_text()))
        if record["key"] == key:
            return LatencyTable(**record["table"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, ConfigurationError) as error:
        announce(f"{file} is damaged ({' '.join(str(error).split()):.80}): its times are measured again")
    table = measure()
    if write and file is not None:
        write_atomically(file, json.dumps(sealed({"key": key, "table": asdict(table)}), indent=1) + "\n")
    return table


def measure_table(model: nn.Module, structure: ModelStructure, seq_len: int) -> LatencyTable:
    """Times one forward of the dense model, and of the same with half of every attention, and of every FFN, gone. It is not changed.

    Args:
        model: dense, on the device and in the type that it will run in.
        seq_len: tokens of the forward.
    """
    whole = _forward_ms(model, seq_len)
    least, per_unit = _LEAST_SHARE * whole / sum(g.units for g in structure.groups), dict[str, float]()
    for kind in sorted({g.kind for g in structure.groups}):
        kept = {g.name: g.even_units(g.units // 2) for g in structure.groups if g.kind == kind}
        saved = whole * (1 - _part_of_dense(model, structure, plan_of_widths(structure, kept), seq_len))
        per_unit[kind] = max(saved / max(1, sum(g.units - len(kept[g.name]) for g in structure.groups if g.kind == kind)), least)
    together = sum(g.units * per_unit[g.kind] for g in structure.groups)
    if together > whole:  # noise: units cannot take more than everything
        per_unit = {kind: ms * whole / together for kind, ms in per_unit.items()}
    return LatencyTable(per_unit, whole, seq_len, 1, hardware_of(model))


def _forward_ms(model: nn.Module, seq_len: int) -> float:
    return float(measure_latency({"model": model}, seq_len, 1, REPEATS)["model"].prefill_ms)


def _part_of_dense(model: nn.Module, structure: ModelStructure, plan: PruningPlan, seq_len: int) -> float:
    """The pruned model's time over the dense one's, which is taken before and after: a machine that slows down slows both."""
    before = _forward_ms(model, seq_len)
    with pruned(model, structure, plan):
        inside = _forward_ms(model, seq_len)
    return inside / ((before + _forward_ms(model, seq_len)) / 2)


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
    found = meet_on_device(model, problem, recipe, problem.latency)
    announce(
        f"latency: {found.measured_ms:.2f} ms measured, {found.target_ms:.2f} ms asked for, dense "
        f"{problem.latency.whole_ms:.2f} ms; {found.rounds} measured plan{'s' if found.rounds > 1 else ''}"
    )
    facts = {"target_ms": found.target_ms, "measured_ms": found.measured_ms, "rounds": found.rounds, "device": problem.latency.device}
    return replace(found.plan, provenance={**plan.provenance, **found.plan.provenance, "latency": facts})


def meet_on_device(model: nn.Module, problem: PruningProblem, recipe: Recipe, table: LatencyTable) -> MeasuredPlan:
    """The recipe's plan at the measured latency. The model is whole again afterwards.

    Raises:
        BudgetError: if no plan reaches the target even by the table.
    """

    def choose(costs: UnitCosts) -> PruningPlan:
        return make_plan(replace(problem, costs=costs), recipe)

    def measure(plan: PruningPlan) -> float:
        return table.whole_ms * _part_of_dense(model, problem.structure, replace(plan, output_bias=False), table.seq_len)

    return meet_by_rounds(problem.budget, problem.structure, table, choose, measure)


def meet_by_rounds(
    budget: Budget,
    structure: ModelStructure,
    table: LatencyTable,
    choose: Callable[[UnitCosts], PruningPlan],
    measure: Callable[[PruningPlan], float],
    *,
    rounds: int = ROUNDS,
    within: float = WITHIN,
) -> MeasuredPlan:
    """Chooses units by the table, measures the plan, corrects the table and chooses again: the plan nearest to the target.

    The first that is ``within`` the target, as a fraction of it, is taken at once. A corrected table may say that no plan reaches the
    target; then the nearest measured one is returned, and ``measured_ms`` says how far it is.

    Args:
        measure: ms of one forward of the pruned model, at the table's sizes. Machines drift: take it beside the dense model, in turns,
            and give ``table.whole_ms * pruned / dense``.
        rounds: 1 or more.

    Raises:
        BudgetError: if the table as given says that no plan reaches the target.
    """
    best: MeasuredPlan | None = None
    for number in range(1, rounds + 1):
        try:
            costs = budget.costs(structure, latency=table)
            plan = choose(costs)
        except BudgetError:
            if best is None:
                raise
            break
        target, predicted, measured = costs.dense - costs.remove, table.predict(plan.kept, structure), measure(plan)
        prunes = predicted < table.whole_ms
        if prunes:
            table = correct(table, predicted, measured)
        if best is None or abs(measured - target) < abs(best.measured_ms - target):
            best = MeasuredPlan(plan, table, target, measured, number)
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
