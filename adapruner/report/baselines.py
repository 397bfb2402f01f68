"""Other methods at the same budget, through the same stages: pruned, reconstructed, recovered.

Every method sees the same calibration pool (all samples alike), the same refit and the same recovery; only the choice of
units differs. The dense model comes back whole after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from torch import nn

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.post_pruning import PostPruning, measure_stages

AllocationName = Literal["uniform", "global"]


def baseline_recipes(metrics: list[str], allocations: list[str]) -> dict[str, Recipe]:
    """Method name -> recipe: each metric alone over the whole pool, with each allocation.

    ``uniform``: every layer loses the same; ``global``: one ranking of score per parameter.

    Raises:
        ConfigurationError: if an allocation is unknown.
    """
    known = {"uniform": Allocation("uniform"), "global": Allocation("gamma", 0.0)}
    unknown = [a for a in allocations if a not in known]
    if unknown:
        raise ConfigurationError(f"report.compare_allocations: expected 'uniform' or 'global', got {unknown[0]!r}; name one of them")
    recipes = {}
    for metric in metrics:
        for allocation in allocations:
            name = metric if len(allocations) == 1 else f"{metric}, {allocation}"
            recipes[name] = Recipe({metric: 1.0}, allocation=known[allocation])
    return recipes


def compare_methods(
    model: nn.Module,
    problem: PruningProblem,
    recipes: dict[str, Recipe],
    post_pruning: PostPruning,
    measure: Callable[[nn.Module], dict[tuple[str, int], float]],
) -> Iterator[tuple[str, str, dict[tuple[str, int], float]]]:
    """Yields (method, stage, perplexity by data set and window) as they are measured.

    A method that cannot meet the budget (uniform widths are coarse on small models) is yielded once with stage ``skipped``
    and no values: it must not end a run whose search is done.
    """
    for name, recipe in recipes.items():
        try:
            plan = make_plan(problem, recipe)
        except BudgetError:
            yield name, "skipped", {}
            continue
        yield from ((name, stage, values) for stage, values in measure_stages(model, problem, plan, post_pruning, measure))
