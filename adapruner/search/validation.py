"""Whether model, data, budget and what is asked for belong together: everything that can be refused before a unit is scored."""

from __future__ import annotations

from dataclasses import replace

import torch

from adapruner.errors import ConfigurationError
from adapruner.pruning.allocation import allocate
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.recipe import Recipe
from adapruner.search.prepare_problem import ProblemBuilder
from adapruner.search.space import SearchSpace


def check_problem(builder: ProblemBuilder, plan: PruningPlan | None, recipe: Recipe | None, space: SearchSpace) -> None:
    """Whether model, budget, pool, and the given plan, recipe or space belong together, before anything is scored.

    Raises:
        BudgetError: if no plan can reach the budget.
        PlanError: if the plan is for another model.
        ConfigurationError: if the recipe names what the pool or the model does not have.
    """
    problem = builder.without_statistics()
    if plan is not None:
        plan.check(builder.structure, builder.fingerprint)
    if recipe is not None:
        if recipe.calibration.seq_len is not None and recipe.calibration.seq_len not in builder.lengths:
            known = ", ".join(map(str, builder.lengths))
            got = recipe.calibration.seq_len
            raise ConfigurationError(f"recipe.calibration.seq_len: expected a length of the pool ({known}), got {got}; leave it null")
        if recipe.calibration.cluster_weights is None:
            problem.calibration.sample_weights(recipe.calibration)
    if plan is not None:
        return
    allocation = space.allocation if recipe is None else recipe.allocation
    largest = recipe.pruned_fraction if recipe is not None else None if space.pruned_fraction is None else space.pruned_fraction[1]
    if largest is not None:
        replace(builder.budget, pruned_fraction=largest).costs(builder.structure, sizes=problem.sizes, latency=problem.latency)
    elif allocation.method in ("uniform", "list"):  # scores have no say in how many units go
        allocate(
            {g.name: torch.ones(g.units) for g in builder.structure.groups}, builder.structure, builder.budget, allocation, problem.costs
        )
