"""A chart as JSON for a page, and as SVG and PNG without a browser. The same chart gives the same bytes.

Vega-Lite, because one description serves both, colours can be the page's own, and a page holds 0.9 MB of JavaScript (plotly's: 4.8).
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import altair as alt

from adapruner.report.charts import PALETTE, colour

_FONT = "system-ui, sans-serif"
CONFIG: dict[str, Any] = {
    "background": None,
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "domainColor": colour("rule"),
        "gridColor": colour("faint"),
        "tickColor": colour("rule"),
        "labelColor": colour("muted"),
        "titleColor": colour("muted"),
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 150,
        "labelFlush": False,
    },
    "legend": {
        "labelColor": colour("muted"),
        "labelFontSize": 12,
        "symbolSize": 75,
        "symbolOpacity": 1,
        "labelLimit": 220,
        "columnPadding": 16,
        "offset": 20,
    },
    "title": {"color": colour("ink"), "fontSize": 13, "fontWeight": 600, "anchor": "start"},
    "text": {"fontSize": 12},
}


def to_spec(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Vega-Lite for a page, as wide as its place; colours are the page's own."""
    return {**chart.properties(width="container").to_dict(), "config": CONFIG}


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed, which a page holds once: about 0.9 MB."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
    return script.replace("</script", "<\\/script")


def to_svg(chart: alt.TopLevelMixin) -> str:
    """For documents: light colours on white."""
    import vl_convert

    numbers: dict[str, int] = {}  # Vega counts clip paths over all that a process draws
    return re.sub(
        r'(?<=id="clip)\d+|(?<=url\(#clip)\d+',
        lambda found: str(numbers.setdefault(found[0], len(numbers))),
        vl_convert.vegalite_to_svg(_light(chart)),
    )


def to_png(chart: alt.TopLevelMixin) -> bytes:
    """The chart as PNG at twice the size."""
    import vl_convert

    png: bytes = vl_convert.vegalite_to_png(_light(chart), scale=2)
    return png


def _light(chart: alt.TopLevelMixin) -> str:
    spec = json.dumps({**chart.to_dict(), "config": {**CONFIG, "background": PALETTE["paper"][0]}})
    return re.sub(r"var\(--([a-z]+)\)", lambda name: PALETTE[name[1]][0], spec)
