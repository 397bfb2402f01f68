"""The page of a comparison, and its charts as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapruner.compare import pareto
from adapruner.compare.costs import cost_tables
from adapruner.compare.tables import NAME, Result, section_table
from adapruner.files.atomic import replacing, write_atomically


def write_plots(result: Result, folder: Path) -> list[Path]:
    """``comparison.html``, both plots as SVG and PNG, ``comparison.pareto.json``; no plot where no value is finite."""
    from adapruner.compare.charts import method_chart, pareto_charts
    from adapruner.report.page import render_page

    sections = [(section_table(section, result), method_chart(section, result)) for section in result.sections]
    costs = pareto_charts(result)
    page = folder / f"{NAME}.html"
    write_atomically(page, render_page("comparison.html", result=result, sections=sections, costs=costs, took=cost_tables(result)))
    files = [page, *_draw([chart for _, chart in sections if chart], folder, NAME), *_draw(costs, folder, f"{NAME}.pareto")]
    if costs:
        files.append(folder / f"{NAME}.pareto.json")
        write_atomically(files[-1], pareto.to_json(result))
    return files


def _draw(charts: Sequence[Any], folder: Path, name: str) -> list[Path]:
    """One picture of several charts, written whole."""
    from adapruner.compare.charts import side_by_side
    from adapruner.report.vega import to_png, to_svg

    if not charts:
        return []
    picture, svg, png = side_by_side(charts), folder / f"{name}.svg", folder / f"{name}.png"
    write_atomically(svg, to_svg(picture))
    with replacing(png) as temporary:
        temporary.write_bytes(to_png(picture))
    return [svg, png]
