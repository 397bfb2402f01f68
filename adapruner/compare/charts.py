"""The charts of a comparison: perplexity against what was removed, and Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import altair as alt

from adapruner.compare.pareto import AXES, Point, dense_cost, front_of, make_points
from adapruner.compare.summary import Section, Spread
from adapruner.compare.tables import Result, spread_text
from adapruner.report.charts import PLAIN_NUMBER, colour, data, key, reference, scale_of, single_out
from adapruner.report.formats import percent_text

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", colour("ink"))
"""Okabe and Ito's, told apart by most colour-blind readers; yellow is left out, which paper swallows."""
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "triangle-right", "triangle-left", "cross")
LOG_FROM = 3.0
"""Perplexities that span more than this factor are drawn on a log axis."""
WIDTH, HEIGHT = 380, 260
"""Pixels of a chart in a file; on a page it is as wide as its place."""


def method_chart(section: Section, result: Result) -> alt.LayerChart | None:
    """Perplexity at the last stage: one line per method over the budgets; with one budget, one row per method.

    ``None`` where no value is finite.
    """
    single = len(result.budgets) == 1
    # A little aside, so that bars of different methods do not lie on each other.
    aside = {method: 0.25 * (number - (len(result.methods) - 1) / 2) for number, method in enumerate(result.methods)}
    rows = [
        {
            "method": line.method,
            "removed": percent_text(line.budget),
            "place": 100 * line.budget + aside[line.method],
            **_interval("perplexity", line.last),
        }
        for line in section.lines
        if line.last is not None and math.isfinite(line.last.mean)
    ]
    if not rows:
        return None
    seeds = f", {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    title = f"{section.dataset}, {section.window:,} tokens{f', {percent_text(result.budgets[0])} removed' if single else ''}{seeds}"
    dense = _dense(section)
    perplexity = _perplexity_axis(section, [row["perplexity"] for row in rows], dense, alt.X if single else alt.Y)
    if single:
        across: Any = {"y": alt.Y("method:N", sort=list(result.methods), title=None, axis=alt.Axis(ticks=False))}
    else:
        budgets = [100 * budget for budget in result.budgets]
        axis = alt.Axis(values=budgets, labelExpr="datum.value + ' %'", grid=False)
        across = {"x": alt.X("place:Q", axis=axis, scale=alt.Scale(zero=False, padding=20), title="parameters removed")}
    layers = _marks(rows, result, {**across, "x" if single else "y": perplexity}, ["x" if single else "y"], title)
    if not single:
        layers.insert(0, alt.Chart(data(rows)).mark_line(strokeWidth=1.5).encode(**across, y=perplexity, color=_colours(result)))
    layers += reference("perplexity", dense, "dense", vertical=single) if dense is not None else []
    return alt.layer(*layers).properties(height=alt.Step(24) if single else HEIGHT, description=title)


def pareto_charts(result: Result) -> list[alt.LayerChart]:
    """Perplexity against each cost that the cells have, section by section."""
    charts = []
    for section in result.sections:
        points = make_points(section, result.costs)
        charts += [_pareto_chart(section, points, axis, result) for axis in AXES if any(p.cost(axis) is not None for p in points)]
    return charts


def side_by_side(charts: Sequence[alt.LayerChart]) -> alt.ConcatChart:
    """For a file: two charts in a row, under their titles."""
    return alt.concat(*(chart.properties(width=WIDTH, title=alt.TitleParams(chart.description, offset=18)) for chart in charts), columns=2)


def _pareto_chart(section: Section, points: Sequence[Point], axis: str, result: Result) -> alt.LayerChart:
    scale = 1e-6 if axis == "parameters" else 1.0
    rows = [
        {
            "method": p.method,
            "removed": percent_text(p.budget),
            **_interval("perplexity", p.perplexity),
            **_interval("cost", getattr(p, axis), scale),
        }
        for p in points
        if p.cost(axis) is not None
    ]
    front = [
        {"cost": scale * (p.cost(axis) or 0.0), "perplexity": p.perplexity.mean, "words": "Pareto front"} for p in front_of(points, axis)
    ]
    title, cost = f"{section.dataset}, {section.window:,} tokens: {AXES[axis]}", dense_cost(result.costs)[axis]
    dense = _dense(section) if cost else None
    across = alt.X("cost:Q", title=AXES[axis], scale=alt.Scale(zero=False, padding=14), axis=alt.Axis(tickCount=6, labelExpr=PLAIN_NUMBER))
    upright = _perplexity_axis(section, [row["perplexity"] for row in rows], dense, alt.Y)
    line = (
        alt.Chart(data(front)).mark_line(color=colour("muted"), opacity=0.35, strokeWidth=4).encode(x=across, y=upright, tooltip="words:N")
    )
    layers = [line, *_marks(rows, result, {"x": across, "y": upright}, ["x", "y"], title)]
    if dense is not None and cost:
        star = alt.Chart(data([{"cost": scale * cost, "perplexity": dense, "words": "dense"}])).encode(x=across, y=upright)
        layers += [star.mark_point(filled=True, size=90, shape="cross", color=colour("ink"), opacity=1)]
        layers += [star.mark_text(align="right", dx=-9, fontWeight=600, color=colour("ink")).encode(text="words:N")]
    return alt.layer(*layers).properties(height=HEIGHT, description=title)


def _marks(rows: Sequence[dict[str, Any]], result: Result, places: dict[str, Any], spreads: Sequence[str], title: str) -> list[alt.Chart]:
    """A point for each row, and a bar of one standard deviation to both sides along ``spreads``."""
    chart, chosen = alt.Chart(data(rows)), single_out("method", title)
    told = [alt.Tooltip(f"{name}:N") for name in rows[0] if name in ("method", "removed") or "±" in name]
    shape = alt.Shape("method:N", scale=alt.Scale(domain=list(result.methods), range=list(SHAPES)))
    pale = alt.condition(chosen, alt.value(1), alt.value(0.08))
    layers = []
    for side in spreads:
        field = places[side]["shorthand"].split(":")[0]
        low = places[side].copy()
        low.shorthand = f"{field}_low:Q"
        ends = {**places, side: low, f"{side}2": f"{field}_high:Q"}
        layers.append(chart.mark_rule(strokeWidth=1.1).encode(**ends, color=_colours(result), opacity=pale))
    points = chart.mark_point(filled=True, size=60, opacity=1).encode(
        **places, color=_colours(result), shape=shape, opacity=pale, tooltip=told
    )
    return [*layers, points.add_params(chosen)]


def _interval(name: str, spread: Spread, scale: float = 1.0) -> dict[str, Any]:
    """A mean, one standard deviation below and above it, and both in words."""
    mean, deviation = scale * spread.mean, scale * (spread.deviation or 0.0)
    low = mean - deviation if mean > deviation else mean  # a log axis has no place for what is below zero
    text = spread_text(Spread(mean, None if spread.deviation is None else deviation, spread.seeds))
    return {name: mean, f"{name}_low": low, f"{name}_high": mean + deviation, f"{name} ± deviation": text}


def _perplexity_axis(section: Section, values: Sequence[float], dense: float | None, channel: Any) -> Any:
    scale = scale_of([*values, *([] if dense is None else [dense])], LOG_FROM)
    log = ", log scale" if scale["type"] == "log" else ""
    return channel(
        "perplexity:Q", scale=scale, title=f"perplexity, {section.stages[-1]}{log}", axis=alt.Axis(tickCount=6, labelExpr=PLAIN_NUMBER)
    )


def _colours(result: Result) -> alt.Color:
    return key("method", dict(zip(result.methods, cycle(COLOURS), strict=False)))


def _dense(section: Section) -> float | None:
    return None if section.dense is None or not math.isfinite(section.dense.mean) else section.dense.mean
