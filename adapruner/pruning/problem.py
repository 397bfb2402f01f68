"""The pruning problem: model structure, statistics, calibration pool and budget; a recipe solves it to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adapruner.calibration.pool import CalibrationPool
from adapruner.errors import ConfigurationError
from adapruner.importance.gram import GramMatrices
from adapruner.importance.mixture import mix_metrics
from adapruner.importance.statistics import UnitStatistics
from adapruner.models.units import ModelStructure
from adapruner.pruning.allocation import allocate
from adapruner.pruning.bias_compensation import input_means
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.costs.sizes import ModelSizes
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.recipe import Recipe


@dataclass(frozen=True)
class PruningProblem:
    """What stays the same over all trials of a search."""

    structure: ModelStructure
    statistics: UnitStatistics
    calibration: CalibrationPool
    budget: Budget
    model_name: str
    fingerprint: str
    seed: int = 0
    weights: str = ""
    """Digest of every weight of the dense model, for plans; empty: they do without."""
    costs: UnitCosts | None = None
    """What a unit costs in what the budget counts; ``None``: worked out from the structure."""
    added_biases: int = 0
    """Parameters that bias compensation adds to the model, where it is used."""
    sizes: ModelSizes | None = None
    """Sizes of the dense model, for budgets and objectives that count MACs or memory."""
    latency: LatencyTable | None = None
    """Table of the device, where the budget is one of latency."""
    grams: GramMatrices | None = None
    """Gram matrices of the output projections' inputs, one for each source of the pool, where trials are refitted."""
    other_lengths: Mapping[int, tuple[UnitStatistics, CalibrationPool]] = field(default_factory=dict)
    """Samples of the same sources at other lengths in tokens, where the length is searched."""

    def at_length(self, seq_len: int | None) -> tuple[UnitStatistics, CalibrationPool]:
        """Statistics and pool of one length; ``None`` is the pool's first.

        Raises:
            ConfigurationError: if the pool was not cut at this length.
        """
        if seq_len is None:
            return self.statistics, self.calibration
        if seq_len not in self.other_lengths:
            known = ", ".join(map(str, self.other_lengths)) or "none but the first"
            raise ConfigurationError(f"calibration.seq_len: expected a length of the pool ({known}), got {seq_len}; leave it null")
        return self.other_lengths[seq_len]

    def without_statistics(self) -> PruningProblem:
        """The same with nothing known of the model's units: no recipe can be solved, but what was asked for can still be told."""
        nothing = UnitStatistics.nothing()
        others = {length: (nothing, pool) for length, (_, pool) in self.other_lengths.items()}
        return replace(self, statistics=nothing, grams=None, other_lengths=others)


def make_plan(problem: PruningProblem, recipe: Recipe, provenance: Mapping[str, Any] | None = None) -> PruningPlan:
    """Scores every unit by the recipe and keeps the best under the budget.

    Raises:
        ConfigurationError: if the problem has no statistics: a run lets go of them once its model is pruned.
    """
    budget, costs = budget_of(problem, recipe)
    kept = allocate(score_units(problem, recipe), problem.structure, budget, recipe.allocation, costs)
    return plan_of_units(problem, recipe, kept, provenance)


def score_units(problem: PruningProblem, recipe: Recipe) -> dict[str, Tensor]:
    """Group name -> ``[units]`` float32, non-negative: the recipe's scores.

    Raises:
        ConfigurationError: if the problem has no statistics.
    """
    if not problem.statistics.samples:
        raise ConfigurationError("problem: expected statistics of the dense model, got none; score the model, before it is pruned")
    statistics, pool = problem.at_length(recipe.calibration.seq_len)
    scores = mix_metrics(
        recipe.coefficients,
        statistics,
        problem.structure,
        pool.sample_weights(recipe.calibration),
        reduction=recipe.reduction,
        head_reduction=recipe.head_reduction,
        form=recipe.form,
        normaliser=recipe.normaliser,
        scope=recipe.scope,
        score_order=recipe.score_order,
        seed=problem.seed,
    )
    return scores


def budget_of(problem: PruningProblem, recipe: Recipe) -> tuple[Budget, UnitCosts]:
    """How much the recipe removes, and what its units cost."""
    budget, costs = problem.budget, problem.costs
    if recipe.pruned_fraction is not None:
        budget, costs = replace(budget, pruned_fraction=recipe.pruned_fraction), None
    return budget, costs or budget.costs(problem.structure, sizes=problem.sizes, latency=problem.latency)


def plan_of_units(
    problem: PruningProblem, recipe: Recipe, kept: dict[str, list[int]], provenance: Mapping[str, Any] | None = None
) -> PruningPlan:
    """The plan that keeps these units.

    Args:
        recipe: what they were chosen by, or started from.
        kept: group name, of all groups -> sorted units that stay.
        provenance: how they were found, as JSON types.
    """
    structure, (budget, costs) = problem.structure, budget_of(problem, recipe)
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in structure.groups)
    removed -= problem.added_biases if recipe.bias_compensation else 0
    return PruningPlan(
        model={
            "name": problem.model_name,
            "model_type": structure.model_type,
            "fingerprint": problem.fingerprint,
            **({"weights": problem.weights} if problem.weights else {}),
        },
        kept=kept,
        units={g.name: g.units for g in structure.groups},
        parameters={
            "dense": structure.parameters,
            "pruned": structure.parameters - removed,
            "block_dense": structure.block_parameters,
            "block_pruned": structure.block_parameters - removed,
            **({"added_biases": problem.added_biases} if recipe.bias_compensation else {}),
        },
        budget=budget.to_dict(costs),
        recipe=recipe.to_dict(),
        provenance=dict(provenance or {}),
        output_bias=recipe.bias_compensation,
        unit_parameters={g.name: g.parameters_per_unit for g in structure.groups},
    )


def bias_means(problem: PruningProblem, recipe: Recipe) -> dict[str, Tensor] | None:
    """Mean inputs ``[channels]`` of every group under the recipe's weights; ``None`` where it does not compensate."""
    if not recipe.bias_compensation:
        return None
    statistics, pool = problem.at_length(recipe.calibration.seq_len)
    return input_means(statistics, problem.structure, pool.sample_weights(recipe.calibration))


def part_weights(problem: PruningProblem, recipe: Recipe) -> Tensor:
    """``[sources]``: what the recipe's sample weights come to for each source of the pool."""
    _, pool = problem.at_length(recipe.calibration.seq_len)
    weights = pool.sample_weights(recipe.calibration)
    return torch.zeros(len(pool.sources.names)).index_add_(0, pool.sources.index, weights)
