"""The charts of the report, as Vega-Lite; :mod:`adapruner.report.page` puts them on a page or into a file.

A chart is as wide as its place and tells each value where the pointer is. Colours are names of :data:`PALETTE`, so that a page can be
light, dark or printed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from adapruner.report.answer import Comparison
from adapruner.report.formats import nll_text, percent_text, perplexity_text
from adapruner.report.sections import Search, Source, Spread, Trial, UnitCounts

PALETTE = {  # name: in light and in dark
    "paper": ("#ffffff", "#13161b"),
    "panel": ("#f5f6f8", "#1b1f26"),
    "ink": ("#1a1e24", "#e9ebee"),
    "muted": ("#5d6775", "#9ba5b3"),
    "rule": ("#dfe3e8", "#323943"),
    "faint": ("#eceff2", "#242a32"),
    "pruned": ("#c8501e", "#f08a5d"),
    "reconstructed": ("#7b56c9", "#b49af2"),
    "recovered": ("#0a8068", "#3fc4a2"),
    "accent": ("#2c63c7", "#7ba8fb"),
    "track": ("#eaeef4", "#252c36"),
}
PLAIN_NUMBER = "datum.label === '' ? '' : format(datum.value, abs(datum.value) < 1e6 ? ',.6~r' : '.3~s')"
"""Labels of an axis: ``500`` and ``20,480``, where the axis' own format has powers of ten; labels that it leaves out stay out."""
LOG_FROM = 5.0
"""Perplexities that span more than this factor are drawn on a log axis."""
CURVE_POINTS = 400
"""A longer loss history is thinned to about this many points."""
IMPORTANCE_BARS = 12
"""Search dimensions drawn; the rest is summed up in one line."""
TRIAL_KINDS = {  # shape and colour
    "searched": ("circle", "accent"),
    "fixed recipe": ("diamond", "ink"),
    "stopped early": ("circle", "muted"),
    "failed": ("cross", "pruned"),
    "beyond the axis": ("triangle-up", "accent"),
}


def colour(name: str) -> str:
    """A colour of :data:`PALETTE` for a chart."""
    return f"var(--{name})"


def data(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
    """Rows as the data of a chart, kept in the chart itself."""
    return alt.Data(values=[dict(row) for row in rows])


def scale_of(values: Sequence[float], log_from: float = LOG_FROM) -> alt.Scale:
    """Logarithmic where the values span more than a factor; never from zero, which perplexities are far from."""
    log = min(values) > 0 and max(values) / min(values) > log_from
    return alt.Scale(type="log", nice=False, padding=12) if log else alt.Scale(type="linear", zero=False, nice=True, padding=12)


def key(field: str, colours: Mapping[str, str]) -> alt.Color:
    """A colour for each value of a field, with a legend above."""
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend(orient="top", title=None, columns=alt.ExprRef("width < 450 ? 3 : 8")))


def single_out(field: str, chart: str = "") -> alt.Parameter:
    """A click on the legend leaves the others pale; charts that stand in one picture need names of their own."""
    return alt.selection_point(fields=[field], bind="legend", name=re.sub(r"\W", "_", f"single_out {chart}"))


def pan_and_zoom() -> alt.Parameter:
    """By dragging, and by the wheel with shift held: the wheel alone scrolls the page."""
    return alt.selection_interval(bind="scales", name="view", zoom="wheel![event.shiftKey]")


def perplexity_chart(comparison: Comparison) -> alt.LayerChart | None:
    """One row per method, one mark per stage, the dense model as a line; ``None`` where no value is finite."""
    found = [(row.method, stage, value) for row in comparison.rows for stage, value in row.values.items() if 0 < value < math.inf]
    if not found:
        return None
    rows = [{"method": method, "stage": stage, "perplexity": value, "text": perplexity_text(value)} for method, stage, value in found]
    dense = comparison.dense if comparison.dense is not None and math.isfinite(comparison.dense) else None
    scale = scale_of([value for _, _, value in found] + ([] if dense is None else [dense]))
    title = f"perplexity{', log scale' if scale['type'] == 'log' else ''} (lower is better)"
    across = alt.X("perplexity:Q", scale=scale, title=title, axis=alt.Axis(labelExpr=PLAIN_NUMBER, tickCount=6))
    methods = alt.Y("method:N", sort=[row.method for row in comparison.rows], title=None, axis=alt.Axis(grid=True, ticks=False))
    chart, chosen = alt.Chart(data(rows)), single_out("stage")
    span = chart.mark_rule(color=colour("muted"), opacity=0.45, strokeWidth=2).encode(
        y=methods, x=alt.X("min(perplexity):Q", title=title), x2="max(perplexity):Q"
    )
    marks = chart.mark_point(filled=True, size=75, opacity=1).encode(
        y=methods,
        x=across,
        color=key("stage", {stage: colour(stage) for stage in comparison.stages}),
        shape=alt.Shape("stage:N", scale=alt.Scale(domain=["pruned", "reconstructed", "recovered"], range=["square", "diamond", "circle"])),
        opacity=alt.condition(chosen, alt.value(1), alt.value(0.1)),
        tooltip=["method:N", "stage:N", alt.Tooltip("text:N", title="perplexity")],
    )
    layers = [span, marks.add_params(chosen)]
    if dense is not None:
        layers += reference("perplexity", dense, f"dense {perplexity_text(dense)}", vertical=True)
    return alt.layer(*layers).properties(height=alt.Step(30), description=f"Perplexity by method and stage on {comparison.title}")


def reference(field: str, value: float, words: str, vertical: bool) -> list[alt.Chart]:
    """A dashed line at a value, with its name at the end: above it, or below one that lies, where what is good lies above."""
    line = alt.Chart(data([{field: value, "words": words}]))
    place: Any = {"x" if vertical else "y": f"{field}:Q"}
    edge: Any = {"y": alt.value(-8)} if vertical else {"x": alt.value("width")}
    sides: Any = {"align": "center"} if vertical else {"align": "right", "dy": 12, "clip": True}
    return [
        line.mark_rule(strokeDash=[4, 3], color=colour("ink"), clip=True).encode(**place),
        line.mark_text(fontWeight=600, stroke=colour("paper"), strokeWidth=4, **sides).encode(text="words:N", **place, **edge),
        line.mark_text(fontWeight=600, color=colour("ink"), **sides).encode(text="words:N", **place, **edge),
    ]


def search_chart(search: Search) -> alt.LayerChart | None:
    """The value of every trial and the best so far; ``None`` where no value is finite."""
    finite = sorted(trial.value for trial in search.history if trial.value is not None)
    if not finite:
        return None
    low, high = _value_range(finite, search.dense_value)
    rows = [_trial_row(trial, high) for trial in search.history]
    best, steps = math.inf, []
    for trial in sorted(search.history, key=lambda t: t.trial):
        if trial.state == "complete" and trial.value is not None:
            best = min(best, trial.value)
        if math.isfinite(best):
            steps.append({"trial": trial.trial, "value": min(best, high)})
    kinds = [kind for kind in TRIAL_KINDS if any(row["kind"] == kind for row in rows)]
    upright = alt.Y(
        "value:Q", scale=alt.Scale(domain=[low, high + 0.04 * (high - low)], nice=False), title="nats per token", axis=alt.Axis(tickCount=6)
    )
    across = alt.X("trial:Q", scale=alt.Scale(nice=False, padding=10), axis=alt.Axis(format="d", tickMinStep=1, tickCount=12, grid=False))
    chosen = single_out("kind")
    marks = (
        alt.Chart(data(rows))
        .mark_point(filled=True, size=55, clip=True)
        .encode(
            x=across,
            y=upright,
            color=key("kind", {kind: colour(TRIAL_KINDS[kind][1]) for kind in kinds}),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=[TRIAL_KINDS[kind][0] for kind in kinds])),
            opacity=alt.condition(chosen, alt.value(0.9), alt.value(0.08)),
            tooltip=["trial:Q", "name:N", "state:N", alt.Tooltip("text:N", title="nats per token"), "seconds:Q"],
        )
    )
    layers = [marks.add_params(chosen, pan_and_zoom())]
    if steps:
        layers.append(
            alt.Chart(data(steps))
            .mark_line(interpolate="step-after", color=colour("ink"), strokeWidth=1.5, clip=True)
            .encode(x=across, y=upright)
        )
    if search.dense_value is not None and low <= search.dense_value <= high:
        layers += reference("value", search.dense_value, f"dense {nll_text(search.dense_value)}", vertical=False)
    words = f"{len(rows)} trials, best {nll_text(search.best_value)} nats per token"
    return alt.layer(*layers).properties(height=260, description=f"Search history: {words}")


def _value_range(ordered: Sequence[float], dense: float | None) -> tuple[float, float]:
    """Leaves single very bad trials outside (they are drawn at the edge), so that the good ones can be told apart."""
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    inside = [v for v in ordered if v <= upper + 2.5 * (upper - lower)] or list(ordered)
    if dense is not None and abs(inside[0] - dense) <= max(inside[-1] - inside[0], 1e-9):
        inside.append(dense)
    air = 0.07 * (max(inside) - min(inside)) or 0.07 * abs(inside[0]) or 1.0
    return min(inside) - 1.5 * air, max(inside) + air  # below a line its name has room


def _trial_row(trial: Trial, high: float) -> dict[str, Any]:
    kind = "searched" if trial.name == "searched" else "fixed recipe"
    if trial.state == "failed" or trial.value is None:
        kind = "failed"
    elif trial.value > high:
        kind = "beyond the axis"
    elif trial.state == "pruned":
        kind = "stopped early"
    shown = high if trial.value is None or kind == "failed" else min(trial.value, high)
    state = {"complete": "complete", "pruned": "stopped early", "failed": "failed"}[trial.state]
    row = {"trial": trial.trial, "name": trial.name, "state": state, "text": nll_text(trial.value), "value": shown, "kind": kind}
    return {**row, "seconds": trial.seconds}


def layers_chart(title: str, units: UnitCounts) -> alt.LayerChart | None:
    """Kept units per layer as bars inside the outline of the dense layer; ``None`` without units."""
    if not any(units.dense):
        return None
    rows = [
        {"layer": layer, "dense": dense, "kept": kept, "share": percent_text(kept / dense) if dense else ""}
        for layer, (dense, kept) in enumerate(zip(units.dense, units.kept, strict=True))
    ]
    chart, told = alt.Chart(data(rows)), ["layer:O", "kept:Q", "dense:Q", alt.Tooltip("share:N", title="of the dense layer")]
    across = alt.X("layer:O", axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False, ticks=False))
    top = alt.Scale(domain=[0, max(units.dense)], nice=False)
    outline = chart.mark_bar(filled=False, stroke=colour("muted"), strokeOpacity=0.6).encode(
        x=across, y=alt.Y("dense:Q", scale=top, title=None, axis=alt.Axis(tickCount=4, grid=False)), tooltip=told
    )
    filled = chart.mark_bar(color=colour("accent")).encode(x=across, y=alt.Y("kept:Q", scale=top), tooltip=told)
    counts = chart.mark_text(dy=-7, color=colour("ink")).encode(x=across, y="dense:Q", text="kept:Q")
    numbered = len(rows) * len(str(max(units.dense))) <= 40
    return alt.layer(outline, filled, *([counts] if numbered else [])).properties(height=130, description=title)


def bars_chart(title: str, rows: Sequence[tuple[str, float, str]]) -> alt.LayerChart:
    """Horizontal bars from zero, each under its name and words: (name, value, words)."""
    chart = alt.Chart(data([{"name": name, "value": value, "words": words} for name, value, words in rows]))
    highest = max((value for _, value, _ in rows), default=0.0) or 1.0
    along = alt.Y("name:N", sort=[name for name, _, _ in rows], axis=None)
    track = chart.mark_bar(size=8, color=colour("track")).encode(y=along, x=alt.value(0), x2=alt.value("width"))
    bars = chart.mark_bar(size=8, color=colour("accent")).encode(
        y=along,
        x=alt.X("value:Q", scale=alt.Scale(domain=[0, highest], nice=False), axis=None),
        tooltip=["name:N", alt.Tooltip("words:N", title="share")],
    )
    names = chart.mark_text(align="left", dy=-14, color=colour("ink")).encode(y=along, x=alt.value(0), text="name:N")
    words = chart.mark_text(align="right", dy=-14, color=colour("ink")).encode(y=along, x=alt.value("width"), text="words:N")
    return alt.layer(track, bars, names, words).properties(height=alt.Step(40), description=title)


def source_bars(title: str, groups: Mapping[str, Source]) -> alt.LayerChart:
    """The weight and the windows of calibration sources or clusters."""
    return bars_chart(title, [(name, group.weight, f"{group.weight:.2f} · {group.samples:,} windows") for name, group in groups.items()])


def importance_bars(importance: Mapping[str, float]) -> tuple[alt.LayerChart, str]:
    """The search dimensions that explain most, and what is left over in words."""
    ordered = sorted(importance.items(), key=lambda item: (-item[1], item[0]))
    bars = [(name, value, percent_text(value)) for name, value in ordered[:IMPORTANCE_BARS]]
    rest = [value for _, value in ordered[IMPORTANCE_BARS:]]
    words = f"{len(rest)} more dimensions share {percent_text(sum(rest))}." if rest else ""
    return bars_chart("Importance of search dimensions", bars), words


def spread_chart(spread: Spread) -> alt.Chart | None:
    """Random sets of samples as dots on one axis, the chosen weights as a diamond; ``None`` where they do not differ."""
    random, chosen = f"random set of {spread.size:,}", "chosen weights"
    rows = [{"set": random, "value": value, "text": nll_text(value)} for value in spread.values if value is not None]
    if rows and spread.chosen is not None:
        rows.append({"set": chosen, "value": spread.chosen, "text": nll_text(spread.chosen)})
    if len({row["value"] for row in rows}) < 2:
        return None
    return (
        alt.Chart(data(rows))
        .mark_point(filled=True, size=65, opacity=0.9)
        .encode(
            x=alt.X(
                "value:Q",
                scale=alt.Scale(zero=False, padding=12),
                title="NLL, nats per token (lower is better)",
                axis=alt.Axis(tickCount=5),
            ),
            color=key("set", {random: colour("accent"), chosen: colour("ink")}),
            shape=alt.Shape("set:N", scale=alt.Scale(domain=[random, chosen], range=["circle", "diamond"])),
            tooltip=["set:N", alt.Tooltip("text:N", title="nats per token")],
        )
        .properties(height=24, description=f"Same recipe with random samples, chosen weights {nll_text(spread.chosen)}")
    )


def loss_chart(history: Sequence[tuple[int, float | None]]) -> alt.LayerChart | None:
    """Training loss of the recovery over its steps; ``None`` where it has fewer than two."""
    points = sorted((step, value) for step, value in history if value is not None)
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    stride = math.ceil(len(points) / CURVE_POINTS)
    points = points[:-1:stride] + points[-1:]
    chart = alt.Chart(data([{"step": step, "loss": loss} for step, loss in points])).encode(
        x=alt.X("step:Q", scale=alt.Scale(nice=False), axis=alt.Axis(grid=False, tickCount=8)),
        y=alt.Y("loss:Q", scale=alt.Scale(zero=False), title="nats per token", axis=alt.Axis(tickCount=6)),
    )
    line = chart.mark_line(color=colour("recovered"), clip=True).add_params(pan_and_zoom())
    told = chart.mark_point(size=80, opacity=0).encode(tooltip=["step:Q", alt.Tooltip("loss:Q", format=".4f")])
    words = f"from {nll_text(points[0][1])} to {nll_text(points[-1][1])} nats per token in {points[-1][0]:.0f} steps"
    return alt.layer(line, told).properties(height=210, description=f"Loss of the recovery, {words}")
