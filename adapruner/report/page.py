"""The report as one HTML page: no network, no scripts, the answer first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapruner.report.answer import COUNTED, answer_sentence, comparisons, left_out
from adapruner.report.formats import (
    MISSING,
    TIMES,
    count_text,
    memory_text,
    milliseconds_text,
    percent_text,
    perplexity_text,
    ratio_text,
    unbroken,
)
from adapruner.report.markup import Markup, element, join
from adapruner.report.schema import validate_report
from adapruner.report.sections import (
    calibration_section,
    comparison_section,
    cost_section,
    export_section,
    generations_section,
    importance_section,
    layers_section,
    protocol_section,
    recipe_section,
    recovery_section,
    search_section,
    zero_shot_section,
)
from adapruner.report.style import STYLE


def render_page(report: Mapping[str, Any]) -> str:
    """The whole page; the same report gives the same bytes.

    Raises:
        ConfigurationError: if the report lacks a key.
    """
    validate_report(report)
    body = element(
        "main",
        _header(report),
        comparison_section(report),
        zero_shot_section(report),
        search_section(report),
        layers_section(report),
        _side_by_side(calibration_section(report), importance_section(report)),
        recovery_section(report),
        _side_by_side(cost_section(report), export_section(report)),
        generations_section(report),
        recipe_section(report),
        protocol_section(report),
        _footer(report),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{report['name']}: compression report"),
        element("style", Markup(STYLE)),
    )
    return "<!doctype html>\n" + element("html", head, "\n", element("body", body), lang="en") + "\n"


def _header(report: Mapping[str, Any]) -> Markup:
    model = report["model"]
    about = f"{model['name']} · {model['model_type']} · {model['layers']} layers · {report['created']}"
    return element(
        "header",
        element("p", "Compression report", class_="eyebrow"),
        element("h1", report["name"]),
        element("p", about, class_="about"),
        element("p", unbroken(answer_sentence(report, "→", TIMES)), class_="lead"),
        _figures(report),
    )


def _figures(report: Mapping[str, Any]) -> Markup:
    model, cost = report["model"], report.get("cost") or {}
    dense, pruned = cost.get("dense", {}), cost.get("pruned", {})
    counted = COUNTED[model["budget_of"]][1]
    perplexity, where = _perplexity_figure(report)
    latency = ratio_text(dense.get("latency_ms"), pruned.get("latency_ms"), TIMES)
    latency_words = (
        f"{milliseconds_text(dense['latency_ms'])} → {milliseconds_text(pruned['latency_ms'])}" if latency != MISSING else "not measured"
    )
    size = memory_text(pruned.get("weight_memory_gib"))
    parameters = join(count_text(model["parameters_dense"]), _arrow(), count_text(model["parameters_pruned"]))
    size_words = "parameters" if size == MISSING else f"parameters; weights {memory_text(dense['weight_memory_gib'])} → {size}"
    return element(
        "dl",
        _figure("Removed", percent_text(model["pruned_fraction"]), f"of {counted}; target {percent_text(model['pruned_fraction_target'])}"),
        _figure("Perplexity", perplexity, where),
        _figure("Latency", latency, latency_words),
        _figure("Size", parameters, size_words),
        class_="figures",
    )


def _perplexity_figure(report: Mapping[str, Any]) -> tuple[Markup, str]:
    for comparison in comparisons(report)[:1]:
        row = comparison.own
        ends = ([] if comparison.dense is None else [comparison.dense]) + ([row.final] if row else [])
        pieces = [piece for value in ends for piece in (_arrow(), perplexity_text(value))][1:]
        return join(*pieces) if pieces else join(MISSING), f"dense → final, {comparison.title}"
    return join(MISSING), "not measured"


def _arrow() -> Markup:
    return element("span", "→", class_="arrow")


def _figure(name: str, value: str, words: str) -> Markup:
    return element("div", element("dt", name), element("dd", value), element("dd", unbroken(words), class_="small"))


def _side_by_side(left: Markup | None, right: Markup | None) -> Markup | None:
    """Two short sections next to each other; one alone takes the whole width."""
    return element("div", left, right, class_="pair sections") if left and right else left or right


def _footer(report: Mapping[str, Any]) -> Markup | None:
    missing = left_out(report)
    return element("footer", element("p", f"Not in this report: {', '.join(missing)}.", class_="note")) if missing else None
