"""One trial on one page: recipe -> scores -> plan -> the model at the pruned widths, to be measured.

No Lightning and no Optuna here: a search, a baseline and a test all run exactly this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.anatomy.latency import LatencyTable
from adapruner.anatomy.sizes import ModelSizes
from adapruner.anatomy.units import ModelAnatomy
from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationPool
from adapruner.errors import ConfigurationError, nearest
from adapruner.importance.gram import GramMatrices
from adapruner.importance.metrics import find_metric
from adapruner.importance.mixture import FORMS, mix_metrics
from adapruner.importance.normalisation import NORMALISERS
from adapruner.importance.reduction import HEAD_REDUCTIONS, MEMBER_REDUCTIONS
from adapruner.importance.statistics import UnitStatistics
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.bias_compensation import NEEDS as BIAS_NEEDS
from adapruner.pruning.bias_compensation import input_means
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import pruned
from adapruner.recovery.local import pruned_and_refitted

#: Fields of a recipe that are a choice among names.
_KNOWN: dict[str, Sequence[str]] = {
    "reduction": tuple(MEMBER_REDUCTIONS),
    "head_reduction": tuple(HEAD_REDUCTIONS),
    "form": FORMS,
    "normaliser": tuple(NORMALISERS),
    "scope": ("model", "layer"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which units go, given the statistics and a budget."""

    coefficients: dict[str, float] = field(default_factory=lambda: {"l2": 1.0})
    """Metric name -> weight in the log-linear mixture; scaled to sum 1."""
    calibration: CalibrationChoice = field(default_factory=CalibrationChoice)
    """Which calibration samples speak, and how much."""
    reduction: str = "sum"
    """Over coupled tensors: sum, mean, max, prod, first."""
    head_reduction: str = "sum"
    """Over a head's channels: sum, mean, max."""
    form: str = "log"
    """How metrics are mixed: ``log``, a weighted geometric mean; ``additive``, a weighted sum."""
    normaliser: str = "mean"
    """Brings each metric to a common scale first: none, sum, mean, max, standardise, rank, per_parameter."""
    scope: str = "model"
    """What a normaliser looks at: the whole ``model``, or each ``layer``'s attention and FFN by itself."""
    bias_compensation: bool = False
    """Add back the mean of what is removed, as a bias of the output projection (FLAP, arXiv 2312.11983)."""
    pruned_fraction: float | None = None
    """Goes before the budget's, where sizes are searched too; ``None``: the budget's."""
    ridge: float | None = None
    """Strength of the reconstruction, relative to the mean diagonal of the Gram matrix; ``None``: as configured there."""
    allocation: Allocation = field(default_factory=Allocation)

    def __post_init__(self) -> None:
        if not self.coefficients or not all(0 <= c < math.inf for c in self.coefficients.values()) or not any(self.coefficients.values()):
            raise ConfigurationError(
                f"recipe.coefficients: expected metrics with weights of 0 or more, one above 0, got {self.coefficients}; give l2: 1.0"
            )
        for name in self.coefficients:
            find_metric(name)
        for argument, known in _KNOWN.items():
            value = getattr(self, argument)
            if value not in known:
                raise ConfigurationError(f"recipe.{argument}: expected a known {argument}, got {value!r}; {nearest(str(value), known)}")
        if self.pruned_fraction is not None and not 0 <= self.pruned_fraction < 1:
            raise ConfigurationError(f"recipe.pruned_fraction: expected a number in [0, 1), got {self.pruned_fraction}; leave it null")
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise ConfigurationError(f"recipe.ridge: expected a positive number, got {self.ridge}; leave it null")

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    @property
    def needs(self) -> frozenset[str]:
        """Statistics its metrics and its bias compensation ask for."""
        needs = frozenset().union(*(find_metric(name).needs for name in self.coefficients))
        return needs | BIAS_NEEDS if self.bias_compensation else needs


@dataclass(frozen=True)
class PruningProblem:
    """What stays the same over all trials of a search."""

    anatomy: ModelAnatomy
    statistics: UnitStatistics
    calibration: CalibrationPool
    budget: Budget
    model_name: str
    fingerprint: str
    seed: int = 0
    costs: UnitCosts | None = None
    """What a unit costs in what the budget counts; ``None``: worked out from the anatomy."""
    added_biases: int = 0
    """Parameters that bias compensation adds to the model, where it is used."""
    sizes: ModelSizes | None = None
    """Of the dense model, where MACs or memory are counted."""
    latency: LatencyTable | None = None
    """Of the device, where the budget is one of latency."""
    grams: GramMatrices | None = None
    """Of the output projections' inputs, one for each source of the pool, where trials are refitted."""
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


def make_plan(problem: PruningProblem, recipe: Recipe, provenance: Mapping[str, Any] | None = None) -> PruningPlan:
    """Scores every unit by the recipe and keeps the best under the budget."""
    statistics, pool = problem.at_length(recipe.calibration.seq_len)
    weights = pool.sample_weights(recipe.calibration)
    scores = mix_metrics(
        recipe.coefficients,
        statistics,
        problem.anatomy,
        weights,
        reduction=recipe.reduction,
        head_reduction=recipe.head_reduction,
        form=recipe.form,
        normaliser=recipe.normaliser,
        scope=recipe.scope,
        seed=problem.seed,
    )
    budget, costs = problem.budget, problem.costs
    if recipe.pruned_fraction is not None:
        budget, costs = replace(budget, pruned_fraction=recipe.pruned_fraction), None
    costs = costs or budget.costs(problem.anatomy, sizes=problem.sizes, latency=problem.latency)
    kept = allocate(scores, problem.anatomy, budget, recipe.allocation, costs)
    plan = plan_from_kept(problem, kept, recipe.to_dict(), provenance, budget.to_dict(costs))
    if not recipe.bias_compensation:
        return plan
    parameters = {name: count + (problem.added_biases if name.endswith("pruned") else 0) for name, count in plan.parameters.items()}
    return replace(plan, output_bias=True, parameters=parameters)


def plan_from_kept(
    problem: PruningProblem,
    kept: Mapping[str, list[int]],
    recipe: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
) -> PruningPlan:
    """The record of a choice of units, with its parameter counts."""
    anatomy = problem.anatomy
    removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in anatomy.groups)
    return PruningPlan(
        model={"name": problem.model_name, "model_type": anatomy.model_type, "fingerprint": problem.fingerprint},
        kept={name: list(units) for name, units in kept.items()},
        units={g.name: g.units for g in anatomy.groups},
        parameters={
            "dense": anatomy.parameters,
            "pruned": anatomy.parameters - removed,
            "block_dense": anatomy.block_parameters,
            "block_pruned": anatomy.block_parameters - removed,
        },
        budget=dict(problem.budget.to_dict() if budget is None else budget),
        recipe=dict(recipe),
        provenance=dict(provenance or {}),
    )


@contextmanager
def at_widths(
    model: nn.Module, problem: PruningProblem, plan: PruningPlan, recipe: Recipe, refit: float | None = None
) -> Iterator[nn.Module]:
    """The model as a trial judges it, inside the block: cut, biases compensated, and refitted where asked.

    Args:
        refit: relative strength of the local refit from the problem's Gram matrices (the recipe's own goes before it);
            ``None`` leaves the kept weights as they are.
    """
    if refit is None:
        with pruned(model, problem.anatomy, plan, bias_means(problem, recipe)):
            yield model
        return
    if problem.grams is None:
        raise ConfigurationError("refit: expected Gram matrices of the calibration pool, got none; collect them, or judge without a refit")
    parts = part_weights(problem, recipe)
    strength = recipe.ridge if recipe.ridge is not None else refit
    with pruned_and_refitted(model, problem.anatomy, plan, problem.grams, parts, strength):
        yield model


def bias_means(problem: PruningProblem, recipe: Recipe) -> dict[str, Tensor] | None:
    """Mean inputs ``[channels]`` of every group under the recipe's weights; ``None`` where it does not compensate."""
    if not recipe.bias_compensation:
        return None
    statistics, pool = problem.at_length(recipe.calibration.seq_len)
    return input_means(statistics, problem.anatomy, pool.sample_weights(recipe.calibration))


def part_weights(problem: PruningProblem, recipe: Recipe) -> Tensor:
    """``[sources]``: what the recipe's sample weights come to for each source of the pool."""
    _, pool = problem.at_length(recipe.calibration.seq_len)
    weights = pool.sample_weights(recipe.calibration)
    return torch.zeros(len(pool.sources.names)).index_add_(0, pool.sources.index, weights)
