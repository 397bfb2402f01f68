"""A picture of the real-model figures: how far every method ends above the dense model after the same recovery, on unseen domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
from real_tables import BEST_FIXED, DENSE, OURS, distances, methods_in_order


def rows(cells: list[dict[str, Any]], budget: float) -> list[dict[str, Any]]:
    """One for each method and seed: perplexity over that of the dense model."""
    here = [c for c in cells if "domain" in c and (c["budget"] == budget or c["method"] == DENSE)]
    found = []
    for method in methods_in_order(here):
        kind = "adapruner" if method in (OURS, BEST_FIXED) else "published"
        found += [{"method": method, "kind": kind, "ratio": 1 + value / 100} for value in distances(here, method, True)]
    return found


def draw(cells: list[dict[str, Any]], file: Path) -> None:
    """Writes the picture; a dot is a seed, a line spans them."""
    budgets = sorted({c["budget"] for c in cells if "domain" in c and c["method"] != DENSE})
    panels = [_panel(rows(cells, budget), budget) for budget in budgets]
    title = alt.TitleParams(
        "SmolLM2-135M: perplexity on unseen domains after refit and LoRA",
        subtitle="as a multiple of the dense model's after the same LoRA; logarithmic, 1 is the dense model; a dot is a seed",
        anchor="start",
        fontSize=15,
        subtitleFontSize=12,
    )
    chart = alt.hconcat(*panels, title=title).configure_view(stroke=None).configure(background="white")
    chart.save(str(file), scale_factor=1.5)


def _panel(values: list[dict[str, Any]], budget: float) -> alt.LayerChart:
    order = list(dict.fromkeys(row["method"] for row in values))
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("method:N", sort=order, title=None, axis=alt.Axis(labelLimit=160, ticks=False))
    )
    x = alt.X("ratio:Q", scale=alt.Scale(type="log", domain=[1, 30]), title=None, axis=alt.Axis(values=[1, 2, 4, 8, 16], format="~g"))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=["adapruner", "published"], range=["#c2410c", "#475569"]), legend=None)
    span = base.mark_rule(strokeWidth=2).encode(x=alt.X("min(ratio):Q", title=None), x2="max(ratio):Q", color=colour)
    dots = base.mark_circle(size=55, opacity=0.9).encode(x=x, color=colour)
    return (span + dots).properties(width=190, height=230, title=f"{budget:.0%} removed")
