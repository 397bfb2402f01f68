"""How much the samples matter: each random set is one more trial of the same recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.spread import random_sets
from adapruner.data.windows import TextWindows
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.search.config import SearchConfig
from adapruner.search.random_samples import measure_spread
from adapruner.search.trial_value import Objective

RECIPE = Recipe({"gate_fisher": 1.0}, CalibrationChoice({"books": 1.0, "code": 0.0, "wiki": 0.0}))


def test_values_are_trials_of_the_recipe_on_random_sets(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    objective = Objective(model, problem, windows, SearchConfig(), None)
    spread = measure_spread(model, problem, objective, RECIPE, 4, tmp_path, {})
    assert spread is not None
    assert (spread.size, len(spread.values)) == (4, 4)  # one of three sources of four samples

    def value(recipe: Recipe) -> float:
        *_, part = objective.of_plan(model, make_plan(problem, recipe), recipe)
        return part.value

    assert spread.chosen == pytest.approx(value(RECIPE))
    sets = random_sets(problem.calibration, RECIPE.calibration, 4, problem.seed)
    assert list(spread.values) == pytest.approx([value(replace(RECIPE, calibration=c)) for c in sets])
    assert spread.std > 0


def test_a_second_call_measures_nothing(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    objective = Objective(model, problem, windows, SearchConfig(), None)
    first = measure_spread(model, problem, objective, RECIPE, 2, tmp_path, {"model": "a"})
    objective.of_plan = lambda *_: pytest.fail("it was measured already")  # type: ignore[method-assign, assignment]
    assert measure_spread(model, problem, objective, RECIPE, 2, tmp_path, {"model": "a"}) == first


def test_nothing_to_draw_where_all_samples_have_a_weight(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    objective = Objective(model, problem, windows, SearchConfig(), None)
    assert measure_spread(model, problem, objective, Recipe({"l2": 1.0}), 3, tmp_path, {}) is None
