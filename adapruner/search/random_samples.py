"""How much the choice of samples matters: the winning recipe with random samples in place of the chosen ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.spread import CalibrationSpread, random_sets, set_size
from adapruner.distributed import Ranks
from adapruner.errors import AdaPrunerError
from adapruner.files.value_cache import ValueCache
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
    progress: Callable[[int], None] | None = None,
) -> CalibrationSpread | None:
    """The search's measure of the recipe, and with ``repeats`` random sets of as many samples; ``None`` where all samples speak.

    Costs one trial for each set. Ranks share the work; what a killed run measured is kept.
    """
    _, pool = problem.at_length(recipe.calibration.seq_len)
    sets = random_sets(pool, recipe.calibration, repeats, problem.seed)
    if not sets:
        return None
    ranks = Ranks()
    memory = ValueCache(None if folder is None else folder / FILE, {**identity, "recipe": recipe.to_dict()})
    names = ["chosen", *(str(i) for i in range(len(sets)))]
    choices = dict(zip(names, [recipe.calibration, *sets], strict=True))
    missing = [n for n in names if memory.get("trial", n) is None]
    for start in range(0, len(missing), ranks.size):
        batch = missing[start : start + ranks.size]
        mine = _measure(model, problem, objective, recipe, choices[batch[ranks.rank]]) if ranks.rank < len(batch) else None
        for name, value in zip(batch, ranks.gather(mine)[: len(batch)], strict=True):
            memory.put("trial", name, value, write=ranks.rank == 0)
        if progress:
            progress(len(names) - len(missing) + start + len(batch))
    values = [memory.get("trial", n) for n in names]
    found = [math.inf if v is None else v for v in values]
    return CalibrationSpread(set_size(pool, recipe.calibration), tuple(found[1:]), found[0])


def _measure(model: nn.Module, problem: PruningProblem, objective: Objective, recipe: Recipe, choice: CalibrationChoice) -> float | None:
    other = replace(recipe, calibration=choice)
    try:
        *_, part = objective.of_plan(model, make_plan(problem, other), other)
    except (AdaPrunerError, ArithmeticError, RuntimeError):
        return None
    return part.value
