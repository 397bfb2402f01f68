"""Meets a latency on the device, not only on paper: choose, measure, correct the line, choose again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.latency import LatencyTable, correct
from adapruner.models.units import ModelStructure
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts


@dataclass(frozen=True)
class MeasuredChoice:
    """The choice of units whose measured latency came nearest to the target."""

    kept: dict[str, list[int]]
    """Group name -> sorted units that stay."""
    costs: UnitCosts
    """What chose them."""
    table: LatencyTable
    """The table after the last correction."""
    target_ms: float
    measured_ms: float
    rounds: int
    """ValueCache that were made."""


def meet_latency(
    budget: Budget,
    structure: ModelStructure,
    table: LatencyTable,
    choose: Callable[[UnitCosts], dict[str, list[int]]],
    measure: Callable[[dict[str, list[int]]], float],
    *,
    rounds: int = 3,
    within: float = 0.03,
) -> MeasuredChoice:
    """Up to ``rounds`` measured plans; the nearest of them, the first that is within ``within`` of the target at once.

    Args:
        choose: from costs to kept units, such as a call of ``allocate`` with everything else bound.
        measure: ms of one forward of the model with these units alone, at the table's sizes. Machines drift: take it beside
            the dense model, in turns, and give ``table.whole_ms * pruned / dense``.
        rounds: 1 or more.
        within: of the target, as a fraction of it.

    A corrected line may say that no plan reaches the target; then the nearest measured one is returned, and ``measured_ms``
    says how far it is.

    Raises:
        BudgetError: if the table as given says that no plan reaches the target.
        ConfigurationError: if the budget is not one of latency, or ``rounds`` is not positive.
    """
    if budget.of != "latency":
        raise ConfigurationError(f"budget.of: expected 'latency' to measure plans, got {budget.of!r}; give 'latency' or latency_ms")
    if rounds < 1:
        raise ConfigurationError(f"rounds: expected 1 or more, got {rounds}; give 3")
    best: MeasuredChoice | None = None
    measurements = 0
    for _ in range(rounds):
        try:
            costs = budget.costs(structure, latency=table)
            kept = choose(costs)
        except BudgetError:
            if best is None:
                raise
            break
        target, predicted = costs.dense - costs.remove, table.predict(kept, structure)
        measured, measurements = measure(kept), measurements + 1
        if predicted < table.whole_ms:
            table = correct(table, predicted, measured)
        if best is None or abs(measured - target) < abs(best.measured_ms - target):
            best = MeasuredChoice(kept, costs, table, target, measured, measurements)
        if abs(best.measured_ms - target) <= within * target or predicted >= table.whole_ms:
            break
    assert best is not None
    return replace(best, table=table, rounds=measurements)
