"""The plots of the page, each from its part of the report to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adapruner.report.answer import Comparison, Row
from adapruner.report.formats import nll_text, perplexity_text
from adapruner.report.markup import Markup, join
from adapruner.report.svg import Axis, bar, curve, frame, horizontal_grid, key_of_marks, label, line, mark, padded

STAGE_MARKS = {"pruned": "circle", "reconstructed": "diamond", "recovered": "circle"}
LOG_FROM = 5.0
"""Perplexities that span more than this factor are drawn on a log axis."""
CURVE_POINTS = 400
"""A longer loss history is thinned to about this many points."""


def perplexity_plot(comparison: Comparison) -> Markup:
    """One row per method, one mark per stage, the dense model as a line."""
    values = [v for row in comparison.rows for v in row.values.values()] + [comparison.dense or math.inf]
    finite = [v for v in values if math.isfinite(v) and v > 0]
    if not finite or not comparison.rows:
        return Markup("")
    log = max(finite) / min(finite) > LOG_FROM
    axis = padded(finite, log)
    top, step = 26, 30
    bottom = top + step * len(comparison.rows)
    parts: list[Markup] = []
    for tick in axis.ticks():
        parts += [
            line(axis.percent(tick), top - 6, axis.percent(tick), bottom, "grid"),
            label(axis.percent(tick), bottom + 17, f"{tick / 1000:,g}k" if tick >= 10_000 else f"{tick:,g}"),
        ]
    if comparison.dense is not None and math.isfinite(comparison.dense):
        x = axis.percent(comparison.dense)
        anchor = "start" if axis.at(comparison.dense) < 0.5 else "end"
        parts += [
            line(x, top - 8, x, bottom, "dense"),
            label(x, 12, f"dense {perplexity_text(comparison.dense)}", anchor, css="label strong"),
        ]
    for number, row in enumerate(comparison.rows):
        parts.append(_method_row(row, axis, top + step * (number + 0.5), row is comparison.own and len(comparison.rows) > 1))
    parts.append(label("50%", bottom + 37, f"perplexity{', log scale' if log else ''} (lower is better)"))
    shown = ", ".join(f"{row.method} {perplexity_text(row.final)}" for row in comparison.rows)
    signs = [(STAGE_MARKS[stage], stage, stage) for stage in comparison.stages] + [("line", "dense", "dense model")]
    title = f"Perplexity by method on {comparison.title}"
    return join(key_of_marks(signs), frame(title, f"Last stage: {shown}", bottom + 44, *parts, margin="named"))


def _method_row(row: Row, axis: Axis, y: float, own: bool) -> Markup:
    finite = {stage: value for stage, value in row.values.items() if math.isfinite(value) and value > 0}
    css = "label name strong" if own else "label name"
    parts = [label("0", y + 4, shortened(row.method), "end", -12, css), line("0", y, "100%", y, "guide")]
    if finite:
        parts.append(line(axis.percent(min(finite.values())), y, axis.percent(max(finite.values())), y, "link"))
    parts += [mark(STAGE_MARKS[s], axis.percent(v), y, s, f"{row.method}, {s}: {perplexity_text(v)}") for s, v in finite.items()]
    return join(*parts, label("100%", y + 4, perplexity_text(row.final), "start", 12, css + " number"))


def search_plot(search: Mapping[str, Any]) -> Markup:
    """Every trial's value, fixed recipes as diamonds, stopped trials hollow, the running best as steps."""
    history = search["history"]
    finite = [t["value"] for t in history if t["value"] is not None and math.isfinite(t["value"])]
    if not finite:
        return Markup("")
    height = 240
    across, upright = Axis(-0.5, max(t["trial"] for t in history) + 0.5), _value_axis(finite, search["dense_value"])
    parts = [horizontal_grid(upright, height)]
    dense = search["dense_value"]
    if dense is not None and upright.low <= dense <= upright.high:
        y = height * (1 - upright.at(dense))
        parts += [line("0", y, "100%", y, "dense"), label("100%", y - 6, f"dense {nll_text(dense)}", "end", css="label strong")]
    parts.append(curve(_running_best(history, across, upright), height, "best"))
    parts += [_trial_mark(t, across, upright, height) for t in history]
    for tick in (t for t in across.ticks(8) if t == int(t)):
        parts.append(label(across.percent(tick), height + 18, f"{tick:.0f}"))
    parts.append(label("50%", height + 38, "trial"))
    states = {(t["name"] == "searched", t["state"]) for t in history}
    signs = [("dot", "trial", "searched"), ("diamond", "fixed", "fixed recipe"), ("dot", "trial hollow", "stopped early")]
    signs += [("cross", "failed", "failed")] if any(state == "failed" for _, state in states) else []
    signs += [("above", "trial", "beyond the axis")] if max(finite) > upright.high else []
    signs += [("line", "best", "best so far")]
    words = f"{len(history)} trials, best {nll_text(search['best_value'])} nats per token"
    return join(key_of_marks(signs), frame("Search history", words, height + 44, *parts))


def _value_axis(values: Sequence[float], dense: float | None) -> Axis:
    """Leaves single very bad trials outside (they are drawn at the edge), so that the good ones can be told apart."""
    ordered = sorted(values)
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    limit = upper + 2.5 * (upper - lower)
    inside = [v for v in ordered if v <= limit] or ordered
    span = inside[-1] - inside[0]
    near = dense is not None and math.isfinite(dense) and abs(inside[0] - dense) <= max(span, 1e-9)
    return padded([*inside, dense] if near and dense is not None else inside, share=0.07)


def _running_best(history: Sequence[Mapping[str, Any]], across: Axis, upright: Axis) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    best = math.inf
    for trial in sorted(history, key=lambda t: t["trial"]):
        value, x = trial["value"], across.at(trial["trial"])
        if trial["state"] == "complete" and value is not None and value < best:
            if math.isfinite(best):
                points.append((x, min(upright.at(best), 1.0)))
            best = value
            points.append((x, min(upright.at(best), 1.0)))
    return [*points, (1.0, points[-1][1])] if points else []


def _trial_mark(trial: Mapping[str, Any], across: Axis, upright: Axis, height: float) -> Markup:
    value, x = trial["value"], across.percent(trial["trial"])
    known = value is not None and math.isfinite(value)
    title = f"trial {trial['trial']}, {trial['name']}: {nll_text(value)}" + (
        "" if trial["state"] == "complete" else f" ({_STATES[trial['state']]})"
    )
    css = "trial" if trial["name"] == "searched" else "fixed"
    css += " hollow" if trial["state"] == "pruned" else ""
    if trial["state"] == "failed" or not known:
        return mark("cross", x, 8, "failed", title)
    if value > upright.high:
        return mark("above", x, 6, css, title)
    return mark("dot" if trial["name"] == "searched" else "diamond", x, height * (1 - upright.at(value)), css, title)


_STATES = {"pruned": "stopped early", "failed": "failed"}


def layers_plot(title: str, dense: Sequence[int], kept: Sequence[int]) -> Markup:
    """Kept units per layer as bars inside the outline of the dense layer."""
    layers, highest, height, top = len(dense), max(dense, default=0), 110, 18
    if not highest:
        return Markup("")
    slot = 100 / layers
    numbered = layers * len(str(highest)) <= 40
    stride = next((s for s in (1, 2, 4, 8, 16, 32) if layers / s <= 16), 64)
    parts = [] if numbered else [label("0", top + 4, f"{highest:,}", "end", -8), label("0", top + height + 4, "0", "end", -8)]
    for number, (all_units, units) in enumerate(zip(dense, kept, strict=True)):
        x, words = slot * (number + 0.14), f"layer {number}: {units} of {all_units} kept"
        outline, filled = height * all_units / highest, height * units / highest
        parts.append(bar(x, top + height - outline, slot * 0.72, outline, "outline", words))
        parts.append(bar(x, top + height - filled, slot * 0.72, filled, "kept", words))
        middle = f"{slot * (number + 0.5):.2f}%"
        if numbered:
            parts.append(label(middle, top + height - outline - 6, str(units), css="label number"))
        if number % stride == 0:
            parts.append(label(middle, top + height + 17, str(number)))
    parts += [line("0", top + height, "100%", top + height, "base"), label("50%", top + height + 36, "layer")]
    words = ", ".join(f"{k} of {d}" for d, k in zip(dense, kept, strict=True))
    return frame(title, f"Kept per layer: {words}", top + height + 42, *parts, margin="bare" if numbered else "wide")


def bars_plot(title: str, rows: Sequence[tuple[str, float, str]]) -> Markup:
    """Horizontal bars from zero, each under its name and words: (name, value, words)."""
    if not rows:
        return Markup("")
    highest = max(value for _, value, _ in rows) or 1.0
    step, parts = 40, []
    for number, (name, value, words) in enumerate(rows):
        y = step * number
        parts += [label("0", y + 14, name, "start", css="label name"), label("100%", y + 14, words, "end", css="label number")]
        parts += [bar(0, y + 21, 100, 8, "track"), bar(0, y + 21, max(100 * value / highest, 0.0), 8, "kept", f"{name}: {words}")]
    described = ", ".join(f"{name} {words}" for name, _, words in rows)
    return frame(title, described, step * len(rows), *parts, margin="bare")


def spread_plot(spread: Mapping[str, Any]) -> Markup:
    """Random sets of samples as dots on one axis, the chosen weights as a diamond."""
    finite = [v for v in spread["values"] if v is not None and math.isfinite(v)]
    chosen = spread["chosen"] if spread["chosen"] is not None and math.isfinite(spread["chosen"]) else None
    shown = [*finite, *([] if chosen is None else [chosen])]
    if not finite or max(shown) <= min(shown):
        return Markup("")
    axis, y = padded(shown, share=0.07), 16
    parts = [line("0", y, "100%", y, "guide")]
    for tick in axis.ticks():
        parts += [line(axis.percent(tick), 4, axis.percent(tick), y + 12, "grid"), label(axis.percent(tick), y + 29, f"{tick:g}")]
    parts += [mark("dot", axis.percent(v), y, "trial", f"random set: {nll_text(v)}") for v in finite]
    signs = [("dot", "trial", f"random set of {spread['size']:,}")]
    if chosen is not None:
        parts.append(mark("diamond", axis.percent(chosen), y, "fixed", f"chosen weights: {nll_text(chosen)}"))
        signs.append(("diamond", "fixed", "chosen weights"))
    parts.append(label("50%", y + 49, "NLL, nats per token (lower is better)"))
    words = f"{len(finite)} random sets from {nll_text(min(finite))} to {nll_text(max(finite))}, chosen weights {nll_text(chosen)}"
    return join(key_of_marks(signs), frame("Same recipe with random samples", words, y + 56, *parts, margin="bare"))


def loss_plot(history: Sequence[Sequence[float | None]]) -> Markup:
    """Training loss of the recovery over its steps."""
    points = sorted((s, v) for s, v in history if s is not None and v is not None and math.isfinite(v))
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return Markup("")
    stride = math.ceil(len(points) / CURVE_POINTS)
    points = points[:-1:stride] + points[-1:]
    height = 200
    across, upright = Axis(points[0][0], points[-1][0]), padded([v for _, v in points], share=0.08)
    parts = [horizontal_grid(upright, height), curve([(across.at(s), upright.at(v)) for s, v in points], height, "loss")]
    parts += [label(across.percent(tick), height + 18, f"{tick:,.0f}") for tick in across.ticks(6) if tick == int(tick)]
    parts += [mark("dot", "100%", height * (1 - upright.at(points[-1][1])), "recovered"), label("50%", height + 38, "step")]
    words = f"Loss from {nll_text(points[0][1])} to {nll_text(points[-1][1])} nats per token in {points[-1][0]:.0f} steps"
    return frame("LoRA recovery", words, height + 44, *parts)


def shortened(name: str, longest: int = 16) -> str:
    """A name that fits the margin; the tables give it in full."""
    return name if len(name) <= longest else name[: longest - 1] + "…"
