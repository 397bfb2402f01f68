"""One plot: perplexity at the last stage against what was removed, one line per method; with one budget, one row per method."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

from adapruner.compare.summary import Line, Section, Spread
from adapruner.compare.tables import NAME, Result

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, told apart by most colour-blind readers; yellow is left out, which paper swallows."""
MARKERS = "osD^vPX<"
DASHES = ("-", "--", ":")
LOG_FROM = 3.0
"""Perplexities that span more than this factor are drawn on a log axis."""
STYLE = {"svg.hashsalt": "adapruner", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw_plot(result: Result, folder: Path) -> list[Path]:
    """Writes ``comparison.svg`` and ``comparison.png``; nothing where no value is finite. The same result, the same bytes."""
    sections = [s for s in result.sections if _values(s)]
    if not sections:
        return []
    import matplotlib
    from matplotlib.figure import Figure

    single = len(result.budgets) == 1
    columns = min(2, len(sections))
    rows = -(-len(sections) // columns)
    height = 1.1 + 0.3 * len(result.methods) if single else 3.6
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * columns + (0.6 if single else 1.9), max(2.2, height) * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis, section in zip(axes.flat, sections, strict=False):
            (_draw_rows if single else _draw_lines)(axis, section, result)
        for axis in list(axes.flat)[len(sections) :]:
            axis.set_axis_off()
        if not single:
            handles, labels = axes.flat[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
        return [save_figure(figure, folder / f"{NAME}.{kind}", kind) for kind in ("svg", "png")]


def _draw_lines(axis: Any, section: Section, result: Result) -> None:
    for number, method in enumerate(result.methods):
        points = [(line.budget, s) for line in section.lines if line.method == method and (s := _last(line)) and math.isfinite(s.mean)]
        # A little aside, so that bars of different methods do not lie on each other.
        aside = (number - (len(result.methods) - 1) / 2) * 0.0025 * 100
        axis.errorbar(
            [100 * budget + aside for budget, _ in points],
            [s.mean for _, s in points],
            yerr=[s.deviation or 0.0 for _, s in points],
            label=method,
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            **look(number),
        )
    if section.dense is not None and math.isfinite(section.dense.mean):
        axis.axhline(section.dense.mean, color="0.45", linewidth=1, linestyle=(0, (4, 3)), label="dense")
    axis.set_xticks([100 * b for b in result.budgets], [f"{100 * b:g} %" for b in result.budgets])
    axis.set_xlabel("parameters removed")
    _finish(axis, axis.yaxis, section, result)


def _draw_rows(axis: Any, section: Section, result: Result) -> None:
    lines = [line for line in section.lines if line.budget == result.budgets[0]]
    for number, line in enumerate(lines):
        spread = _last(line)
        if spread is not None and math.isfinite(spread.mean):
            axis.errorbar([spread.mean], [number], xerr=[spread.deviation or 0.0], linestyle="", **look(number))
    if section.dense is not None and math.isfinite(section.dense.mean):
        axis.axvline(section.dense.mean, color="0.45", linewidth=1, linestyle=(0, (4, 3)))
        axis.annotate("dense", (section.dense.mean, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color="0.35")
    axis.set_yticks(range(len(lines)), [line.method for line in lines])
    axis.set_ylim(len(lines) - 0.5, -0.5)
    _finish(axis, axis.xaxis, section, result)


def _finish(axis: Any, scale: Any, section: Section, result: Result) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = _values(section)
    log = max(values) / min(values) > LOG_FROM
    if log:
        (axis.set_yscale if scale is axis.yaxis else axis.set_xscale)("log")
        scale.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        scale.set_minor_formatter(NullFormatter())
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    scale.set_label_text(f"perplexity, {section.stages[-1]}{', log scale' if log else ''}")
    scale.grid(color="0.9", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.margins(**{"y" if scale is axis.yaxis else "x": 0.08})
    seeds = f", {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    what = f", {100 * result.budgets[0]:g} % removed" if len(result.budgets) == 1 else ""
    axis.set_title(f"{section.dataset}, {section.window:,} tokens{what}{seeds}", fontsize=10, loc="left", pad=16 if what else 6)


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the method of this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.5,
        "elinewidth": 1.1,
        "capsize": 2.5,
    }


def _last(line: Line) -> Spread | None:
    """At the last stage the method has."""
    return list(line.stages.values())[-1] if line.stages else None


def _values(section: Section) -> list[float]:
    """Everything that will be drawn."""
    spreads = [s for line in section.lines if (s := _last(line)) is not None]
    return [s.mean for s in [*spreads, *([section.dense] if section.dense and spreads else [])] if math.isfinite(s.mean) and s.mean > 0]


def save_figure(figure: Any, path: Path, kind: str) -> Path:
    """Written whole; the same figure, the same bytes."""
    image = io.BytesIO()
    # No date and no version: the same table gives the same picture.
    figure.savefig(image, format=kind, dpi=160, metadata={"Date": None, "Creator": None} if kind == "svg" else {"Software": None})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(image.getvalue())
    temporary.replace(path)
    return path
