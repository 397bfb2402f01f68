"""Finished trials: what is remembered of each, the best of them, and the table of all."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from adapruner.files.atomic import write_atomically


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial."""

    trial: int
    name: str
    """The seed trial's name, or ``searched``."""
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    """NLL per token on the search split; of the part that was evaluated, where the trial was stopped early."""
    seconds: float
    params: dict[str, Any]
    plan_hash: str = ""
    cost: float | None = None
    """With two objectives, the fraction left of what the cost counts."""


def record_of(index: int, trial: Any) -> TrialRecord:
    """From an Optuna trial; ``index`` counts finished trials, those of killed processes left out."""
    state: Any = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
    attributes, values = trial.user_attrs, trial.values if state == "complete" else None
    value = values[0] if values else attributes.get("value")
    return TrialRecord(
        index,
        attributes.get("name", "searched"),
        state,
        value,
        attributes.get("seconds", 0.0),
        dict(trial.params),
        attributes.get("plan_hash", ""),
        values[1] if values and len(values) > 1 else None,
    )


def best_of(records: list[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the lowest value, the earlier of equals; ``None`` if there is none."""
    complete = [r for r in records if r.state == "complete" and r.value is not None]
    return min(complete, key=lambda r: (r.value, r.trial)) if complete else None


def write_csv(records: list[TrialRecord], folder: Path) -> None:
    """``trials.csv``: one row a trial, one column a dimension; rewritten whole, so it is never torn."""
    params = sorted({p for r in records for p in r.params})
    cost = ["cost"] if any(r.cost is not None for r in records) else []
    with io.StringIO(newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["trial", "name", "state", "value", "seconds", "plan_hash", *cost, *params])
        for r in records:
            first = [r.trial, r.name, r.state, r.value, round(r.seconds, 3), r.plan_hash]
            writer.writerow([*first, *([r.cost] if cost else []), *(r.params.get(p) for p in params)])
        write_atomically(folder / "trials.csv", out.getvalue())


def to_history(trials: list[TrialRecord]) -> list[dict[str, Any]]:
    """JSON rows for the report."""
    return [{k: v for k, v in asdict(r).items() if k != "params"} for r in trials]
