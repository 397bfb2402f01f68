"""Other methods at the same budget, through the same stages: pruned, reconstructed, recovered.

Every method sees the same calibration pool (all samples alike), the same refit and the same recovery; only the choice of
units differs. The dense model comes back whole after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from adapruner.errors import BudgetError
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.post_pruning import PostPruning, measure_stages


def baseline_recipes(metrics: list[str]) -> dict[str, Recipe]:
    """Method name -> recipe: each metric alone over the whole pool; every layer loses the same."""
    return {metric: Recipe({metric: 1.0}, allocation=Allocation("uniform")) for metric in metrics}


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
