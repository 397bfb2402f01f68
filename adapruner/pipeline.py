"""One trial on one page: recipe -> scores -> plan -> evaluation at the pruned widths.

No Lightning and no Optuna here: a search, a baseline and a test all run exactly this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.anatomy.units import ModelAnatomy
from adapruner.errors import ConfigurationError, nearest
from adapruner.evaluation.perplexity import NLLResult, Windows, evaluate_nll_chunks
from adapruner.importance.metrics import find_metric
from adapruner.importance.mixture import mix_metrics
from adapruner.importance.statistics import UnitStatistics
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import pruned


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which units go, given the statistics and a budget."""

    coefficients: Mapping[str, float] = field(default_factory=lambda: {"l2": 1.0})
    """Metric name -> weight in the log-linear mixture; scaled to sum 1."""
    source_weights: Mapping[str, float] | None = None
    """Calibration source (or cluster) -> weight, shared equally by its samples. ``None``: every sample speaks alike."""
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
    allocation: Allocation = field(default_factory=Allocation)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        record = asdict(self)
        record["coefficients"] = dict(self.coefficients)
        record["source_weights"] = None if self.source_weights is None else dict(self.source_weights)
        return record

    @property
    def needs(self) -> frozenset[str]:
        """Statistics its metrics ask for."""
        return frozenset().union(*(find_metric(name).needs for name in self.coefficients))


@dataclass(frozen=True)
class CalibrationGroups:
    """Which sample belongs to which source (or cluster)."""

    names: tuple[str, ...]
    index: Tensor
    """``[samples]`` int64, positions in ``names``."""

    def sample_weights(self, source_weights: Mapping[str, float] | None) -> Tensor:
        """``[samples]`` float32 with sum 1: each source's weight shared equally by its samples.

        Raises:
            ConfigurationError: if a source is unknown, or no weight is positive.
        """
        if source_weights is None:
            return torch.full((len(self.index),), 1.0 / len(self.index))
        unknown = sorted(set(source_weights) - set(self.names))
        if unknown:
            raise ConfigurationError(f"source_weights: expected calibration sources, got {unknown[0]!r}; {nearest(unknown[0], self.names)}")
        per_source = torch.tensor([max(0.0, float(source_weights.get(n, 0.0))) for n in self.names], dtype=torch.float64)
        counts = torch.bincount(self.index, minlength=len(self.names)).clamp_min(1)
        weights = (per_source / counts)[self.index]
        if float(weights.sum()) <= 0:
            raise ConfigurationError("source_weights: expected one positive weight, got none; give a source a weight above 0")
        return (weights / weights.sum()).float()


@dataclass(frozen=True)
class PruningProblem:
    """What stays the same over all trials of a search."""

    anatomy: ModelAnatomy
    statistics: UnitStatistics
    calibration: CalibrationGroups
    budget: Budget
    model_name: str
    fingerprint: str
    seed: int = 0


def make_plan(problem: PruningProblem, recipe: Recipe, provenance: Mapping[str, Any] | None = None) -> PruningPlan:
    """Scores every unit by the recipe and keeps the best under the budget."""
    weights = problem.calibration.sample_weights(recipe.source_weights)
    scores = mix_metrics(
        recipe.coefficients,
        problem.statistics,
        problem.anatomy,
        weights,
        reduction=recipe.reduction,
        head_reduction=recipe.head_reduction,
        form=recipe.form,
        normaliser=recipe.normaliser,
        scope=recipe.scope,
        seed=problem.seed,
    )
    kept = allocate(scores, problem.anatomy, problem.budget, recipe.allocation)
    return plan_from_kept(problem, kept, recipe.to_dict(), provenance)


def plan_from_kept(
    problem: PruningProblem, kept: Mapping[str, list[int]], recipe: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
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
        budget=problem.budget.to_dict(),
        recipe=dict(recipe),
        provenance=dict(provenance or {}),
    )


def evaluate_plan(
    model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan, windows: Windows, *, batch_size: int = 8, chunks: int = 1
) -> Iterator[NLLResult]:
    """NLL of the model at the plan's widths, cumulative after every chunk of the windows; the model comes back whole."""
    with pruned(model, anatomy, plan):
        yield from evaluate_nll_chunks(model, windows, batch_size, chunks)
