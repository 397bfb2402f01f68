"""One trial on one page: recipe -> scores -> plan -> evaluation at the pruned widths.

No Lightning and no Optuna here: a search, a baseline and a test all run exactly this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from adapruner.anatomy.units import ModelAnatomy
from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationPool
from adapruner.errors import ConfigurationError
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
    allocation: Allocation = field(default_factory=Allocation)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    @property
    def needs(self) -> frozenset[str]:
        """Statistics its metrics ask for."""
        return frozenset().union(*(find_metric(name).needs for name in self.coefficients))


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
