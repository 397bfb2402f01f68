"""How much the choice of samples matters: the winning recipe with random samples in place of the chosen ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.calibration.spread import CalibrationSpread, random_sets, set_size
from adapruner.errors import AdaPrunerError
from adapruner.files.value_cache import ValueCache
from adapruner.progress import progress_bar
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.search.trial_value import Objective

FILE = "calibration_spread.json"


def measure_spread(
    model: nn.Module,
    problem: PruningProblem,
    objective: Objective,
    recipe: Recipe,
    repeats: int,
    folder: Path | None,
    identity: dict[str, Any],
) -> CalibrationSpread | None:
    """The objective's value of the recipe, and with ``repeats`` random sets of as many samples; ``None`` where the recipe has all samples.

    Costs one trial for each set. Ranks share the work; what a killed run measured is kept.
    """
    _, pool = problem.at_length(recipe.calibration.seq_len)
    sets = random_sets(pool, recipe.calibration, repeats, problem.seed)
    if not sets:
        return None
    choices = {"chosen": recipe.calibration, **{str(i): choice for i, choice in enumerate(sets)}}

    def value(name: str) -> float | None:
        advance(next(done))
        other = replace(recipe, calibration=choices[name])
        try:
            *_, part = objective.of_plan(model, make_plan(problem, other), other)
        except (AdaPrunerError, ArithmeticError, RuntimeError):
            return None
        return part.value

    cache = ValueCache(None if folder is None else folder / FILE, {**identity, "recipe": recipe.to_dict()})
    done = iter(range(len(choices)))
    with progress_bar("random samples", len(choices)) as advance:
        chosen, *others = (math.inf if v is None else v for v in cache.measure("trial", list(choices), value))
        advance(len(choices))
    return CalibrationSpread(set_size(pool, recipe.calibration), tuple(others), chosen)
