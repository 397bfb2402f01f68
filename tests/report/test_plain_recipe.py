"""A chosen plan that is no more than a fixed recipe says so, and what *best fixed* is stands wherever it is named."""

from __future__ import annotations

import copy
import io
from typing import Any

from rich.console import Console

from adapruner.pruning.fixed_recipe import IN_WORDS, plain_recipe_sentence
from adapruner.report.page import render_report
from adapruner.report.schema import validate_report
from adapruner.report.terminal import print_report
from tests.report.pages import Page
from tests.report.sample import FIXED, sample_report

BEST = min(FIXED, key=lambda name: FIXED[name])


def with_best_fixed(fixed_recipe: str | None) -> dict[str, Any]:
    """The sample report, its own method's values once more under ``best fixed``."""
    report = copy.deepcopy(sample_report())
    report["perplexity"] += [{**row, "method": "best fixed"} for row in report["perplexity"] if row["method"] == "adapruner"]
    report["search"]["fixed_recipe"] = fixed_recipe
    return report


def on_terminal(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_report(report, console)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def on_page(report: dict[str, Any]) -> str:
    return " ".join(Page(render_report(validate_report(report))).text.split())


def test_a_plain_recipe_is_one_sentence_on_terminal_and_page() -> None:
    for show in (on_terminal, on_page):
        assert show(with_best_fixed(BEST)).count(plain_recipe_sentence(BEST)) == 1
        assert "plain recipe, " not in show(with_best_fixed(None))


def test_best_fixed_is_explained_beside_every_table_that_names_it() -> None:
    said = f"{BEST}, {IN_WORDS}."
    for show in (on_terminal, on_page):
        text = show(with_best_fixed(None))
        assert text.count(f"best fixed: {said}") == 2  # two sets of held-out text, a table each
        assert text.count(f"Best fixed recipe: {said}") == 1  # where the search is
    without = on_terminal(sample_report())
    assert "best fixed:" not in without
    no_search = with_best_fixed(None)
    no_search["search"] = None
    assert on_terminal(no_search).count(f"best fixed: {IN_WORDS}.") == 2
