"""Two objectives: the trials that no other beats in both, the one that a run prunes with, and their files."""

from __future__ import annotations

import json
from pathlib import Path

from adapruner.files.atomic import write_atomically
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.search.trials import TrialRecord


def pareto_front(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Complete trials that no other complete trial beats in value and cost, the smallest cost first; equal ones once."""
    found: list[TrialRecord] = []
    complete = [t for t in trials if t.state == "complete" and t.value is not None and t.cost is not None]
    for trial in sorted(complete, key=lambda t: (t.cost, t.value, t.trial)):
        if not found or (found[-1].value is not None and trial.value is not None and trial.value < found[-1].value):
            found.append(trial)
    return found


def pick_from_front(front: list[TrialRecord], budget: Budget) -> TrialRecord:
    """The best value among those that remove at least what the budget says; where none does, the smallest model."""
    small_enough = [t for t in front if t.params.get("pruned_fraction", budget.pruned_fraction) >= budget.pruned_fraction - 1e-9]
    return min(small_enough, key=lambda t: (t.value, t.trial)) if small_enough else front[0]


def write_front(folder: Path, front: list[tuple[TrialRecord, PruningPlan]]) -> None:
    """``pareto.json`` (one row a point) and ``plans/trial-N.json``, each ready for ``--pruning.plan``."""
    (folder / "plans").mkdir(exist_ok=True)
    rows = []
    for trial, plan in front:
        file = folder / "plans" / f"trial-{trial.trial}.json"
        plan.save(file)
        rows.append(
            {
                "trial": trial.trial,
                "name": trial.name,
                "value": trial.value,
                "cost": trial.cost,
                "pruned_fraction": plan.pruned_fraction,
                "plan": str(file.relative_to(folder)),
            }
        )
    write_atomically(folder / "pareto.json", json.dumps(rows, indent=2) + "\n")
