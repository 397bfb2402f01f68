"""What regular FFN widths cost and gain: the same recipe at any width is a row of its own, and a sentence of the cost."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import adapruner
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.problem import make_plan
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.report import regular_widths
from adapruner.report.answer import widths_sentence
from adapruner.report.formats import ratio_text
from adapruner.report.recorder import ReportConfig
from adapruner.report.regular_widths import at_any_width, regular_multiple
from adapruner.report.schema import ANY_WIDTH, validate_report
from tests.report.sample import sample_report

WINDOWS = torch.randint(3, 2000, (12, 24), generator=torch.Generator().manual_seed(0))
RECIPE = adapruner.Recipe({"l2": 1.0}, allocation=Allocation("gamma"))


@pytest.fixture(scope="module")
def scored() -> Any:
    return adapruner.stages.score("demo", calibration=WINDOWS, budget=0.3, recipe=RECIPE, reconstruction=None)


def test_the_same_recipe_without_rounding_costs_as_much(scored: Any) -> None:
    found = adapruner.stages.search(scored)
    loose = at_any_width(scored, found)
    assert loose == replace(RECIPE, allocation=replace(RECIPE.allocation, round_to=1))
    plan = make_plan(scored.problem, loose)
    assert regular_multiple(scored.problem, found.remaining) == 8  # multiples of 16 do not meet 30 % within 0.1 %
    assert regular_multiple(scored.problem, plan) == 0
    assert math.isclose(plan.pruned_fraction, found.plan.pruned_fraction, rel_tol=1e-2)


@pytest.mark.parametrize(
    ("widths", "sets", "multiple"),
    [
        ((368, 368), 1, 16),
        ((1344, 512), 1, 64),
        ((1344, 1352), 1, 8),
        ((1344, 1350), 1, 0),
        ((576, 576), 8, 8),
        ((400, 400), 8, 0),
        ((), 1, 0),
    ],
)
def test_what_widths_are_multiples_of(widths: tuple[int, ...], sets: int, multiple: int) -> None:
    """Of each expert; a common divisor by chance, such as 368, is none."""
    groups = [SimpleNamespace(name=f"{i}.ffn", kind="ffn", sets=sets, expert_units=False) for i, _ in enumerate(widths)]
    whole = SimpleNamespace(name="whole.ffn", kind="ffn", sets=sets, expert_units=False)
    kept = {group.name: list(range(width)) for group, width in zip(groups, widths, strict=True)}
    plan: Any = SimpleNamespace(kept=kept, keeps_all=lambda group: group is whole)
    problem: Any = SimpleNamespace(structure=SimpleNamespace(groups=[*groups, whole]))
    assert regular_multiple(problem, plan) == multiple


def test_a_plan_that_met_a_latency_is_not_compared(scored: Any) -> None:
    found = adapruner.stages.search(scored)
    timed = replace(scored, problem=replace(scored.problem, latency=object()))
    assert at_any_width(timed, found) is None


@pytest.mark.parametrize("recipe", [replace(RECIPE, allocation=Allocation("gamma", round_to=1)), replace(RECIPE, sequential=False)])
def test_nothing_to_tell_where_widths_are_any_or_a_plan_is_given(scored: Any, recipe: adapruner.Recipe) -> None:
    options: dict[str, Any] = {"recipe": recipe}
    if recipe.allocation.round_to is None:
        options = {"plan": adapruner.stages.search(scored).plan}
    other = adapruner.stages.score("demo", calibration=WINDOWS, budget=0.3, reconstruction=None, **options)
    assert at_any_width(other, adapruner.stages.search(other)) is None


def test_a_run_reports_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def widths(model: Any, *_: Any) -> float:
        timed.append(model.model.layers[0].mlp.down_proj.in_features)
        return 8.0 if timed[-1] % 8 == 0 else 10.0

    monkeypatch.setattr(regular_widths, "time_prefill", widths)

    def run(**options: Any) -> Any:
        held_out, report = {"held out": WINDOWS.flip(1)[:4]}, ReportConfig(latency_seq_len=8, latency_repeats=1, **options)
        refit = ReconstructionConfig(only_if_better=False)
        given: dict[str, Any] = {"recipe": RECIPE, "reconstruction": refit, "evaluation": held_out, "report": report}
        return adapruner.prune("demo", None, WINDOWS, 0.3, **given, progress=False)

    found = validate_report(run().report)
    assert len(set(timed)) == 2
    values = {(row.method, row.stage): row.value for row in found.perplexity or ()}
    change = 100 * (values["adapruner", "reconstructed"] / values[ANY_WIDTH, "reconstructed"] - 1)  # type: ignore[operator]
    assert widths_sentence(found) == (
        f"FFN widths are multiples of 8. Beside the same recipe at any width a forward takes {ratio_text(10.0, 8.0)} of the time, and "
        f"perplexity (reconstructed) changes by {change:+.1f} %."
    )
    without = validate_report(run(compare_any_width=False).report)
    assert widths_sentence(without) is None
    assert ANY_WIDTH not in {row.method for row in without.perplexity or ()}


def test_the_sentence_without_perplexity() -> None:
    record = sample_report()
    record["cost"]["widths"] = {"multiple": 64, "regular_ms": 50.0, "any_ms": 100.0}
    assert widths_sentence(validate_report(record)) == (
        f"FFN widths are multiples of 64. Beside the same recipe at any width a forward takes {ratio_text(100.0, 50.0)} of the time."
    )
    record["cost"]["pruned"]["latency_iqr_ms"] = 60.0
    assert widths_sentence(validate_report(record)) == (
        "FFN widths are multiples of 64. Beside the same recipe at any width a forward takes as long, as far as this timing can tell."
    )
