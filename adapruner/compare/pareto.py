"""Perplexity at the last stage against parameters, and against latency where the cells timed it: points and Pareto fronts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from adapruner.compare.summary import CostRow, Section, Spread, known_by_all, summarise
from adapruner.compare.tables import Result

AXES = {"parameters": "parameters, millions", "latency_ratio": "latency, of the dense model's"}
#: By how much one cost has to lie below another to be less: a latency is not known more closely.
TOLERANCE = {"parameters": 0.0, "latency_ratio": 0.01}


@dataclass(frozen=True)
class Point:
    """One method at one budget on one dataset: means over seeds."""

    method: str
    budget: float
    perplexity: Spread
    parameters: Spread
    latency_ms: Spread | None
    """``None``: a cell did not time it."""
    latency_ratio: Spread | None
    """The latency over the dense model's, timed in turns with it: a busy machine spoils this ratio least."""

    def cost(self, axis: str) -> float | None:
        """The mean on an axis of :data:`AXES`."""
        spread = getattr(self, axis)
        return None if spread is None else spread.mean


def make_points(section: Section, costs: Sequence[CostRow]) -> list[Point]:
    """The section's lines with a finite perplexity and a known cost."""
    points = []
    for line in section.lines:
        own, last = [row for row in costs if (row.method, row.budget) == (line.method, line.budget)], line.last
        if last is None or not own or not math.isfinite(last.mean):
            continue
        latency = known_by_all(row.latency_ms for row in own)
        ratio = known_by_all(row.latency_ms / row.latency_dense_ms if row.latency_ms and row.latency_dense_ms else None for row in own)
        points.append(Point(line.method, line.budget, last, summarise(row.parameters for row in own), latency, ratio))
    return points


def front_of(points: Sequence[Point], axis: str) -> list[Point]:
    """Points that no other beats in both perplexity and cost, by rising cost; costs within :data:`TOLERANCE` are alike."""
    known = [(point, cost) for point in points if (cost := point.cost(axis)) is not None]
    known.sort(key=lambda pair: (pair[1], pair[0].perplexity.mean))
    front: list[Point] = []
    for number, (point, cost) in enumerate(known):
        as_cheap = [other for place, (other, its) in enumerate(known) if place != number and its <= cost * (1 + TOLERANCE[axis])]
        twins = [other for other in front if (other.cost(axis), other.perplexity.mean) == (cost, point.perplexity.mean)]
        cheaper = [other for other, its in known if its * (1 + TOLERANCE[axis]) < cost]
        beaten = any(other.perplexity.mean < point.perplexity.mean for other in as_cheap)
        if not twins and not beaten and all(other.perplexity.mean > point.perplexity.mean for other in cheaper):
            front.append(point)
    return front


def dense_cost(costs: Sequence[CostRow]) -> dict[str, float | None]:
    """The dense model on each axis; ``None`` where nobody timed it."""
    timed = any(row.latency_dense_ms for row in costs)
    return {"parameters": summarise(row.parameters_dense for row in costs).mean, "latency_ratio": 1.0 if timed else None}


def to_json(result: Result) -> str:
    """Every point with the axes on whose front it is."""
    sections = []
    for section in result.sections:
        points = make_points(section, result.costs)
        fronts = {axis: front_of(points, axis) for axis in AXES}
        listed = [{**asdict(point), "on_front": [axis for axis in AXES if point in fronts[axis]]} for point in points]
        dense = None if section.dense is None or not math.isfinite(section.dense.mean) else section.dense.mean
        sections.append({"dataset": section.dataset, "window": section.window, "dense": dense, "points": listed})
    return json.dumps({"dense": dense_cost(result.costs), "sections": sections}, indent=1, ensure_ascii=False) + "\n"
