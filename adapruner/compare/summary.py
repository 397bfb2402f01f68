"""The table's mathematics: mean and spread over seeds, and paired differences to one method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapruner.compare.cells import Cell
from adapruner.report.schema import OWN_METHOD, STAGES, Report


@dataclass(frozen=True)
class Row:
    """One measurement of one cell."""

    method: str
    budget: float
    seed: int
    stage: str
    dataset: str
    window: int
    """Tokens."""
    perplexity: float | None
    """``None``: not finite."""
    parameters: int
    """Parameters of the model at this stage."""
    plan: str
    """Hash of the pruning plan."""


@dataclass(frozen=True)
class CostRow:
    """One cell's final model; ``None``: not measured."""

    method: str
    budget: float
    seed: int
    parameters: int
    parameters_dense: int
    latency_ms: float | None
    """Latency of one forward, as the report's protocol says."""
    latency_dense_ms: float | None
    """Latency of the dense model, timed in turns with it."""
    seconds: float | None = None
    """Time of the run, over all processes that worked at it."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds of it."""
    peak_gib: float | None = None
    """The most memory that a process of the run held."""
    device_peak_gib: float | None = None
    """The most that tensors held on its GPU."""
    trials: int | None = None
    """Of the search; 0 without one."""
    recovery_tokens: int | None = None
    """Predictions that the recovery trained on; 0 without one."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1); ``None`` where there is one seed."""
    seeds: int


@dataclass(frozen=True)
class Paired(Spread):
    """Perplexity minus another method's at the same budget, dataset and stage, seed by seed."""

    lower: int
    """Seeds at which it is lower than the other's."""
    by_seed: dict[int, float | None]
    """``None``: one of the two is not finite."""


@dataclass(frozen=True)
class Line:
    """One method at one budget on one dataset."""

    method: str
    budget: float
    stages: dict[str, Spread]
    """Stage -> perplexity."""
    differences: dict[str, Paired]
    """Stage -> difference to the method that all are compared with; nothing for that method itself."""

    @property
    def last(self) -> Spread | None:
        """Perplexity at the last stage that it has."""
        return list(self.stages.values())[-1] if self.stages else None

    @property
    def paired(self) -> Paired | None:
        """The difference at the last stage that both have."""
        return list(self.differences.values())[-1] if self.differences else None


@dataclass(frozen=True)
class Section:
    """Every method at every budget on one dataset at one window."""

    dataset: str
    window: int
    dense: Spread | None
    lines: tuple[Line, ...]
    """Budget by budget, methods in the order of the comparison."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages after ``dense`` that at least one line has."""
        return tuple(stage for stage in STAGES[1:] if any(stage in line.stages for line in self.lines))

    def best(self, budget: float, stage: str) -> float | None:
        """Lowest mean at a budget and stage, among the methods with the most seeds there; ``None`` if one stands alone."""
        spreads = [line.stages[stage] for line in self.lines if line.budget == budget and stage in line.stages]
        most = max((s.seeds for s in spreads), default=0)
        means = [s.mean for s in spreads if s.seeds == most and math.isfinite(s.mean)]
        return min(means) if len(means) > 1 else None


def read_cell(cell: Cell, report: Report) -> tuple[list[Row], CostRow]:
    """What a finished cell measured: perplexities of the dense model and of its own at every stage, and what its model costs."""
    where, model, rows = (cell.method, cell.budget, cell.seed), report.model, []
    for row in report.perplexity or ():
        dense = row.stage == "dense"
        if dense or row.method == OWN_METHOD:
            parameters = model.parameters_dense if dense else model.parameters_pruned
            plan = "" if dense else model.plan_hash
            rows.append(Row(*where, row.stage, row.dataset, row.window, row.value, parameters, plan))
    latencies = (report.cost.pruned.latency_ms, report.cost.dense.latency_ms) if report.cost else (None, None)
    return rows, CostRow(*where, model.parameters_pruned, model.parameters_dense, *latencies, **_run_costs(report))


def _run_costs(report: Report) -> dict[str, Any]:
    """What the run itself took, as far as its record says."""
    took, lora = report.took, report.recovery.lora if report.recovery else None
    costs: dict[str, Any] = {"trials": report.search.trials if report.search else 0, "recovery_tokens": lora.tokens if lora else 0}
    if took is not None:
        costs |= {"seconds": took.seconds, "stages": took.stages, "peak_gib": took.peak_gib, "device_peak_gib": took.device_peak_gib}
    return costs


def summarise(values: Iterable[float | None]) -> Spread:
    """Mean and sample standard deviation; one value that is not finite makes the mean infinite.

    >>> summarise([30.0, 32.0, 34.0])
    Spread(mean=32.0, deviation=2.0, seeds=3)
    """
    numbers = [math.inf if v is None else v for v in values]
    if not all(map(math.isfinite, numbers)):
        return Spread(math.inf, None, len(numbers))
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def known_by_all(values: Iterable[float | None]) -> Spread | None:
    """``None`` as soon as one value is missing: a mean over fewer seeds would not stand for the others.

    >>> known_by_all([1.0, None]), known_by_all([2.0, 4.0]).mean
    (None, 3.0)
    """
    numbers = list(values)
    return None if None in numbers else summarise(numbers)


def make_sections(rows: Sequence[Row], methods: Sequence[str], budgets: Sequence[float], against: str | None = None) -> list[Section]:
    """One section per dataset and window, in the order of the rows. Seeds without a result are left out.

    Args:
        against: the method that differences are taken to; the first one when empty.
    """
    sections, other = [], against or methods[0]
    for dataset, window in dict.fromkeys((row.dataset, row.window) for row in rows):
        own = [row for row in rows if (row.dataset, row.window) == (dataset, window)]
        dense = [row.perplexity for row in {r.seed: r for r in own if r.stage == "dense"}.values()]
        lines = []
        for budget in budgets:
            theirs = _by_stage(own, other, budget)
            for method in methods:
                values = _by_stage(own, method, budget)
                differences = {} if method == other else _differences(values, theirs)
                lines.append(Line(method, budget, {stage: summarise(seeds.values()) for stage, seeds in values.items()}, differences))
        sections.append(Section(dataset, window, summarise(dense) if dense else None, tuple(lines)))
    return sections


def _by_stage(rows: Iterable[Row], method: str, budget: float) -> dict[str, dict[int, float | None]]:
    """Stage -> seed -> perplexity."""
    found = [row for row in rows if row.method == method and row.budget == budget]
    stages = {stage: {row.seed: row.perplexity for row in found if row.stage == stage} for stage in STAGES[1:]}
    return {stage: seeds for stage, seeds in stages.items() if seeds}


def _differences(values: Mapping[str, Mapping[int, float | None]], theirs: Mapping[str, Mapping[int, float | None]]) -> dict[str, Paired]:
    """Paired differences at every stage that both have, over the seeds that both have."""
    found: dict[str, Paired] = {}
    for stage in (stage for stage in STAGES if stage in values and stage in theirs):
        seeds = sorted(values[stage].keys() & theirs[stage].keys())
        by_seed = {seed: _minus(values[stage][seed], theirs[stage][seed]) for seed in seeds}
        if by_seed:
            spread = summarise(by_seed.values())
            lower = sum(difference is not None and difference < 0 for difference in by_seed.values())
            found[stage] = Paired(spread.mean, spread.deviation, spread.seeds, lower, by_seed)
    return found


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
