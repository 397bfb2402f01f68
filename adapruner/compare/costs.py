"""What the runs of a comparison took: columns for the CSV, and a table of means over seeds. Times differ from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adapruner.compare.summary import CostRow, Spread, known_by_all
from adapruner.report.formats import MISSING, count_text, duration_text, memory_text, percent_text
from adapruner.report.tables import Cell, TextTable

if TYPE_CHECKING:
    from adapruner.compare.tables import Result

TITLE = "What the runs took"
LEAST_SECONDS = 0.5
"""A stage that no run spent so long in has no column."""
#: Attribute of a cost -> heading of its column, and how its values are written.
COLUMNS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "seconds": ("time", duration_text),
    "peak_gib": ("memory", memory_text),
    "device_peak_gib": ("GPU memory", memory_text),
    "trials": ("trials", count_text),
    "recovery_tokens": ("trained tokens", count_text),
}


def stage_names(costs: Sequence[CostRow]) -> list[str]:
    """Stages that at least one run had, in the order in which they were first met."""
    return list(dict.fromkeys(name for row in costs for name in row.stages))


def csv_columns(costs: Sequence[CostRow]) -> list[str]:
    """Names of the cost columns: one for each stage, too."""
    return [*COLUMNS, *(_column(name) for name in stage_names(costs))]


def csv_values(row: CostRow) -> dict[str, Any]:
    """Column -> value of one cell; what its record does not say is left out."""
    stages = {_column(name): round(seconds, 3) for name, seconds in row.stages.items()}
    return {**{name: value for name in COLUMNS if (value := getattr(row, name)) is not None}, **stages}


def cost_table(result: Result) -> TextTable | None:
    """Every method at every budget, means over seeds; ``None`` where no run says what it took."""
    shown = {name: column for name, column in COLUMNS.items() if any(getattr(row, name) for row in result.costs)}
    if "seconds" not in shown:
        return None
    rows = [
        (*labels, *(_text(known_by_all(getattr(row, name) for row in own), write) for name, (_, write) in shown.items()))
        for labels, own in _groups(result)
    ]
    seeds = "Means over seeds ± sample standard deviation" if len(result.seeds) > 1 else "One seed"
    note = f"{seeds}; time from the start of a cell's run to its end, over its processes where it was resumed."
    together = f" {result.jobs} cells ran at a time and shared the machine." if result.jobs > 1 else ""
    return _table(TITLE, ("removed", "method", *(heading for heading, _ in shown.values())), rows, note + together)


def stage_table(result: Result) -> TextTable | None:
    """The time of every method at every budget by stage, means over seeds; ``None`` where no run says it."""
    stages = [name for name in stage_names(result.costs) if any(row.stages.get(name, 0.0) >= LEAST_SECONDS for row in result.costs)]
    if not stages:
        return None
    rows = []
    for labels, own in _groups(result):
        means = [known_by_all(row.stages.get(stage) for row in own) for stage in stages]
        rows.append((*labels, *(MISSING if mean is None else duration_text(mean.mean) for mean in means)))
    return _table(f"{TITLE}, by stage", ("removed", "method", *stages), rows, "Means over seeds; together they are the whole time.")


def cost_tables(result: Result) -> list[TextTable]:
    """Both, where there are some."""
    return [table for table in (cost_table(result), stage_table(result)) if table is not None]


def _groups(result: Result) -> Iterator[tuple[tuple[str, str], list[CostRow]]]:
    """The runs of every method at every budget, and how they are called."""
    for budget in result.budgets:
        for method in result.methods:
            own = [row for row in result.costs if (row.method, row.budget) == (method, budget)]
            if own:
                yield (percent_text(budget), method), own


def _table(title: str, columns: tuple[str, ...], rows: Sequence[Sequence[str]], note: str) -> TextTable:
    return TextTable(title, columns, tuple(tuple(map(Cell, row)) for row in rows), (note,), labels=2)


def _text(spread: Spread | None, write: Callable[[float | None], str]) -> str:
    if spread is None:
        return MISSING
    return write(spread.mean) if not spread.deviation else f"{write(spread.mean)} ± {write(spread.deviation)}"


def _column(stage: str) -> str:
    return f"seconds_{stage.replace(' ', '_').replace('-', '_')}"
