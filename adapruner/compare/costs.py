"""What the cells' models cost, where their reports have it."""

from __future__ import annotations

from dataclasses import dataclass

from adapruner.compare.cells import Cell
from adapruner.report.record import read_report


@dataclass(frozen=True)
class CostRow:
    """One cell's final model; ``None``: not measured."""

    method: str
    budget: float
    seed: int
    parameters: int
    parameters_dense: int
    latency_ms: float | None
    """Of one forward, as the report's protocol says."""
    latency_dense_ms: float | None
    """Of the dense model, timed in turns with it."""


def read_cost(cell: Cell) -> CostRow:
    """The cost section of a finished cell's report."""
    report = read_report(cell.folder)
    model, cost = report["model"], report.get("cost") or {}
    times = [(cost.get(which) or {}).get("latency_ms") for which in ("pruned", "dense")]
    return CostRow(cell.method, cell.budget, cell.seed, model["parameters_pruned"], model["parameters_dense"], *times)
