"""The Pareto plot: perplexity at the last stage against parameters, and against latency where the cells timed it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapruner.compare.costs import CostRow
from adapruner.compare.plot import LOG_FROM, STYLE, look, save_figure
from adapruner.compare.summary import Section, Spread, summarise
from adapruner.compare.tables import NAME, Result
from adapruner.files.atomic import write_atomically

PARETO = f"{NAME}.pareto"
AXES = {"parameters": "parameters, millions", "latency_ms": "latency, ms"}


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
    """To the dense model's, timed in turns with it: of all times the one that a busy machine spoils least."""

    def cost(self, axis: str) -> float | None:
        """The mean on an axis of :data:`AXES`."""
        spread = getattr(self, axis)
        return None if spread is None else spread.mean


def make_points(section: Section, costs: Sequence[CostRow]) -> list[Point]:
    """The section's lines with a finite perplexity and a known cost."""
    points = []
    for line in section.lines:
        own = [row for row in costs if (row.method, row.budget) == (line.method, line.budget)]
        last = list(line.stages.values())[-1] if line.stages else None
        if last is None or not own or not math.isfinite(last.mean):
            continue
        latency = _known(row.latency_ms for row in own)
        ratio = _known(row.latency_ms / row.latency_dense_ms if row.latency_ms and row.latency_dense_ms else None for row in own)
        points.append(Point(line.method, line.budget, last, summarise(row.parameters for row in own), latency, ratio))
    return points


def front_of(points: Sequence[Point], axis: str) -> list[Point]:
    """Points that no other beats in both perplexity and cost, by rising cost."""
    timed = sorted((p for p in points if p.cost(axis) is not None), key=lambda p: (p.cost(axis), p.perplexity.mean))
    front: list[Point] = []
    for point in timed:
        if not front or point.perplexity.mean < front[-1].perplexity.mean:
            front.append(point)
    return front


def write_pareto(result: Result, folder: Path) -> list[Path]:
    """``comparison.pareto.json``, ``.svg`` and ``.png``; nothing where no cell is done."""
    found = [(section, points) for section in result.sections if (points := make_points(section, result.costs))]
    if not found:
        return []
    file = folder / f"{PARETO}.json"
    record = {"dense": _dense_cost(result.costs), "sections": [_plain(*pair) for pair in found]}
    write_atomically(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return [*_draw(found, result, folder), file]


def _draw(found: Sequence[tuple[Section, list[Point]]], result: Result, folder: Path) -> list[Path]:
    import matplotlib
    from matplotlib.figure import Figure

    axes_used = [axis for axis in AXES if any(p.cost(axis) is not None for _, points in found for p in points)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(axes_used) + 1.9, 3.6 * len(found)), layout="constrained")
        panels = figure.subplots(len(found), len(axes_used), squeeze=False)
        for row, (section, points) in zip(panels, found, strict=True):
            for panel, axis in zip(row, axes_used, strict=True):
                _draw_panel(panel, section, points, axis, result)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        return [save_figure(figure, folder / f"{PARETO}.{kind}", kind) for kind in ("svg", "png")]


def _draw_panel(panel: Any, section: Section, points: Sequence[Point], axis: str, result: Result) -> None:
    scale = 1e-6 if axis == "parameters" else 1.0
    front = front_of(points, axis)
    panel.plot(
        [scale * (p.cost(axis) or 0.0) for p in front], [p.perplexity.mean for p in front], color="0.7", linewidth=3, label="Pareto front"
    )
    for number, method in enumerate(result.methods):
        own = [p for p in points if p.method == method and p.cost(axis) is not None]
        if own:
            panel.errorbar(
                [scale * (p.cost(axis) or 0.0) for p in own],
                [p.perplexity.mean for p in own],
                xerr=[scale * (getattr(p, axis).deviation or 0.0) for p in own],
                yerr=[p.perplexity.deviation or 0.0 for p in own],
                label=method,
                **{**look(number), "linestyle": ""},
            )
    dense = _dense_cost(result.costs).get(axis)
    values = [p.perplexity.mean for p in points]
    if section.dense is not None and math.isfinite(section.dense.mean) and dense:
        panel.plot([scale * dense], [section.dense.mean], color="0.3", marker="*", markersize=10, linestyle="", label="dense")
        values.append(section.dense.mean)
    _label(panel, section, axis, max(values) / min(values) > LOG_FROM)


def _label(panel: Any, section: Section, axis: str, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if log:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.set_ylabel(f"perplexity, {section.stages[-1]}{', log scale' if log else ''}")
    panel.set_xlabel(AXES[axis])
    panel.grid(color="0.9", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.set_title(f"{section.dataset}, {section.window:,} tokens", fontsize=10, loc="left")


def _dense_cost(costs: Sequence[CostRow]) -> dict[str, float | None]:
    """Means over all cells: each timed it beside its own model."""
    parameters, latency = summarise(row.parameters_dense for row in costs), _known(row.latency_dense_ms for row in costs)
    return {"parameters": parameters.mean, "latency_ms": None if latency is None else latency.mean}


def _known(values: Iterable[float | None]) -> Spread | None:
    """``None`` as soon as one value is missing: a mean over fewer seeds would not stand for the point."""
    numbers = list(values)
    return None if None in numbers else summarise(numbers)


def _plain(section: Section, points: Sequence[Point]) -> dict[str, Any]:
    fronts = {axis: front_of(points, axis) for axis in AXES}
    return {
        "dataset": section.dataset,
        "window": section.window,
        "dense": None if section.dense is None or not math.isfinite(section.dense.mean) else section.dense.mean,
        "points": [{**asdict(point), "on_front": [axis for axis in AXES if point in fronts[axis]]} for point in points],
    }
