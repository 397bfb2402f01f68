"""One trial: recipe -> scores -> plan -> evaluation at the pruned widths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.importance.statistics import collect_statistics
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.pruning.masking import masked
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.post_pruning import trial_model
from tests.conftest import build_model, build_windows

POOL = CalibrationPool(CalibrationGroups(("books", "wiki"), torch.tensor([0, 1, 0, 1, 1])))


@pytest.fixture(scope="module")
def case() -> Any:
    from adapruner.models.tracing import trace_structure

    model, windows = build_model("llama_gqa_2", intermediate_size=160), build_windows()
    structure = trace_structure(model)
    problem = PruningProblem(structure, collect_statistics(model, structure, windows), POOL, Budget(0.4), "tiny", "f")
    return model, windows, problem


def test_same_recipe_same_plan(case: Any) -> None:
    recipe = Recipe(
        {"taylor_second": 1.0, "l2": 0.5}, CalibrationChoice({"books": 0.3, "wiki": 0.7}), "max", allocation=Allocation("gamma", 0.5)
    )
    one, other = make_plan(case[2], recipe), make_plan(case[2], recipe)
    assert one == other
    assert one.hash == other.hash
    assert one.recipe["calibration"]["source_weights"] == {"books": 0.3, "wiki": 0.7}
    assert abs(one.pruned_fraction - 0.4) < 0.002


def test_one_source_alone_equals_a_pool_of_that_source(case: Any) -> None:
    model, windows, problem = case
    rows = [0, 2]
    only = collect_statistics(model, problem.structure, windows.select(rows))
    smaller = replace(
        problem, statistics=only, calibration=CalibrationPool(CalibrationGroups(("books",), torch.zeros(2, dtype=torch.long)))
    )
    for metric in ("taylor_second", "taylor_vectorize", "gate_fisher", "wanda_sp", "flap_wifv"):
        weighted = make_plan(problem, Recipe({metric: 1.0}, CalibrationChoice({"books": 1.0})))
        assert weighted.kept == make_plan(smaller, Recipe({metric: 1.0})).kept


def test_evaluation_equals_the_masked_model_and_leaves_it_whole(case: Any) -> None:
    model, windows, problem = case
    recipe = Recipe({"wanda_sp": 1.0})
    plan = make_plan(problem, recipe)
    dense = evaluate_nll(model, windows).nll
    with trial_model(model, problem, plan, recipe):
        result = evaluate_nll(model, windows, batch_size=2)
    with masked(model, problem.structure, plan):
        assert result.nll == pytest.approx(evaluate_nll(model, windows).nll, abs=1e-5)
    assert evaluate_nll(model, windows).nll == dense
    assert result.tokens == 5 * 8
