"""The report as one HTML page: it loads nothing from elsewhere, the answer stands first. Templates lie in ``templates/``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jinja2

from adapruner.report import answer, charts, formats, tables, vega
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
    environment.filters |= {"unbroken": formats.unbroken, "flat": flat, "dedent": lambda text: textwrap.dedent(text.strip("\n"))}
    environment.globals |= {"answer": answer, "charts": charts, "tables": tables, "vega": vega, "MISSING": formats.MISSING}
    return environment
