"""The report as one HTML page: it loads nothing from elsewhere, the answer stands first. Templates lie in ``templates/``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jinja2

from adapruner.report import answer, charts, formats, headline, tables, vega
from adapruner.report.schema import Report


def render_report(report: Report) -> str:
    """The whole page; the same report gives the same bytes."""
    return render_page("report.html", report=report, comparisons=answer.comparisons(report))


def render_page(template: str, **values: Any) -> str:
    """A page of ``templates/``; everything put into it is escaped."""
    return _environment().get_template(template).render(**values)


def flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names.

    >>> list(flat({"allocation": {"gamma": 0.5, "method": "gamma"}, "seed": 1}))
    [('allocation.gamma', 0.5), ('allocation.method', 'gamma'), ('seed', 1)]
    """
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def recipe_rows(recipe: Mapping[str, Any], multiple: int | None = None) -> list[tuple[str, str]]:
    """What a recipe sets, in words; nothing of what it leaves open.

    Args:
        multiple: of the FFN widths that came of it, where it left them open.

    >>> recipe_rows({"allocation": {"gamma": 0.5, "round_to": None}, "ridge": None}, multiple=8)
    [('allocation.gamma', '0.5'), ('allocation.round_to', 'by the model: multiples of 8')]
    """
    rows = dict(flat(recipe))
    if multiple is not None and rows.get("allocation.round_to", 0) is None:
        rows["allocation.round_to"] = f"by the model: multiples of {multiple}"
    return [(name, formats.value_text(value)) for name, value in rows.items() if value is not None]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adapruner.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name.removesuffix("_text"): value for name, value in vars(formats).items() if name.endswith("_text")}
    environment.filters |= {"unbroken": formats.unbroken, "dedent": lambda text: textwrap.dedent(text.strip("\n"))}
    environment.globals |= {
        "answer": answer,
        "headline": headline,
        "charts": charts,
        "tables": tables,
        "vega": vega,
        "recipe_rows": recipe_rows,
        "MISSING": formats.MISSING,
    }
    return environment
