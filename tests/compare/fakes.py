"""Cells that cost nothing: a configuration or two on disk, and a runner that writes the report a ``fit`` would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapruner.compare.cells import LOG_NAME, Cell, claim
from adapruner.compare.progress import Display, Outcome
from adapruner.compare.spec import ComparisonSpec, make_spec
from tests.report.sample import sample_report

#: Method -> perplexity when pruned, by seed; the rest is worked out from it.
PRUNED = {"adapruner": {0: 40.0, 1: 44.0, 2: 42.0}, "l2": {0: 60.0, 1: 58.0, 2: 65.0}, "random": {0: 400.0, 1: 500.0, 2: 600.0}}


def find(name: str, argument: str) -> str:
    """Every name is a path."""
    return name


def fake_spec(place: Path, methods: Sequence[str] = ("adapruner", "l2"), **changes: Any) -> ComparisonSpec:
    """Two budgets and three seeds over a base and overlays that lie in ``place``."""
    place.mkdir(exist_ok=True)
    (place / "base.yaml").write_text("model: {name_or_path: demo}\n")
    for method in methods:
        if method != "adapruner":
            (place / f"{method}.yaml").write_text(f"pruning: {{recipe: {{coefficients: {{{method}: 1.0}}}}}}\n")
    names = [m if m == "adapruner" else str(place / f"{m}.yaml") for m in methods]
    values = {"base": str(place / "base.yaml"), "methods": names, "budgets": [0.2, 0.5], "seeds": [0, 1, 2], "folder": str(place / "out")}
    return make_spec({**values, **changes}, find)


def fake_report(cell: Cell, pruned: float | None) -> dict[str, Any]:
    """Dense 30; pruned; recovered: half of the way back, twice the loss at half the budget more."""
    report = sample_report()
    report["model"]["plan_hash"] = f"{cell.method}-{cell.budget}-{cell.seed}"
    values = {"dense": 30.0, "pruned": pruned, "recovered": None if pruned is None else 30.0 + (pruned - 30.0) * cell.budget}
    report["perplexity"] = [
        {"stage": stage, "method": "dense" if stage == "dense" else "adapruner", "dataset": "text", "window": 128, "value": value}
        for stage, value in values.items()
    ]
    report["perplexity"].append({"stage": "pruned", "method": "some metric", "dataset": "text", "window": 128, "value": 1.0})
    return report


class FakeRun:
    """Ends at the second look; ``code`` 0 leaves a report, anything else a log."""

    def __init__(self, cell: Cell, code: int = 0, pruned: float | None = None) -> None:
        claim(cell, ["fit"])
        self.cell, self.code, self.looks, self.ended = cell, code, 0, False
        self.pruned = PRUNED[cell.method][cell.seed] if pruned is None else pruned
        with (cell.folder / LOG_NAME).open("a") as log:
            log.write("$ adapruner fit\nsearch: 1 of 2\n")

    def poll(self) -> int | None:
        """``None`` once, then the code."""
        self.looks += 1
        if self.looks < 2:
            return None
        if self.code == 0:
            (self.cell.folder / "report.json").write_text(json.dumps(fake_report(self.cell, self.pruned)))
        else:
            with (self.cell.folder / LOG_NAME).open("a") as log:
                log.write("adapruner: error: budget: expected less, got more; prune less\nsome chatter\n")
        return self.code

    def end(self) -> None:
        """Killed."""
        self.ended = True


class Starter:
    """Counts what was started; ``fails`` maps a cell's title to an exit code, ``kill_at`` raises at that start."""

    def __init__(self, fails: dict[str, int] | None = None, kill_at: int | None = None, make: Callable[..., Any] = FakeRun) -> None:
        self.fails, self.kill_at, self.make = fails or {}, kill_at, make
        self.started: list[str] = []
        self.runs: list[Any] = []
        self.most = 0

    def __call__(self, cell: Cell) -> Any:
        if self.kill_at is not None and len(self.started) == self.kill_at:
            raise KeyboardInterrupt
        self.started.append(cell.title)
        self.runs.append(self.make(cell, self.fails.get(cell.title, 0)))
        self.most = max(self.most, sum(run.looks < 2 for run in self.runs))
        return self.runs[-1]


class Silent(Display):
    """Prints nothing and keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str | None]] = []

    def begun(self, cell: Cell) -> None:
        """Kept."""
        self.lines.append(("begun", cell.title))

    def at_work(self) -> None:
        """Nothing."""

    def ended(self, outcome: Outcome) -> None:
        """Kept."""
        self.lines.append(("ended", outcome.failure))
