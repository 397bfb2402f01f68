"""A log-linear mixture of metrics: the metric subspace of AdaPruner (arXiv 2503.06184) as we parametrise it.

score_u = exp( sum_k a_k log(s_ku / mean_k) ) with a_k >= 0, sum a_k = 1: a weighted geometric mean of the metrics, each
divided by its mean over the whole model. One coefficient alone gives back that metric's own ranking exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapruner.anatomy.units import ModelAnatomy
from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import find_metric
from adapruner.importance.metrics.interface import Evidence
from adapruner.importance.reduction import reduce_to_units
from adapruner.importance.statistics import UnitStatistics

_SMALLEST = 1e-12


def score_metric(
    name: str,
    statistics: UnitStatistics,
    anatomy: ModelAnatomy,
    weights: Tensor,
    *,
    reduction: str = "sum",
    head_reduction: str = "sum",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Group name -> ``[units]`` float32 scores of one metric under sample weights ``[samples]``."""
    metric = find_metric(name)
    return {
        group.name: reduce_to_units(metric.score(Evidence(statistics, group, weights, seed)), group, reduction, head_reduction)
        for group in anatomy.groups
    }


def mix_metrics(
    coefficients: Mapping[str, float],
    statistics: UnitStatistics,
    anatomy: ModelAnatomy,
    weights: Tensor,
    *,
    reduction: str = "sum",
    head_reduction: str = "sum",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Group name -> ``[units]`` scores of the mixture; coefficients are scaled to sum 1, zeros drop out.

    Raises:
        ConfigurationError: if no coefficient is positive, or one is negative.
    """
    if not coefficients or min(coefficients.values()) < 0 or sum(coefficients.values()) <= 0:
        raise ConfigurationError(f"coefficients: expected non-negative values with a positive sum, got {dict(coefficients)}; name a metric")
    active = {name: value / sum(coefficients.values()) for name, value in coefficients.items() if value > 0}
    logs: dict[str, Tensor] = {}
    for name, coefficient in active.items():
        scores = score_metric(name, statistics, anatomy, weights, reduction=reduction, head_reduction=head_reduction, seed=seed)
        mean = torch.cat(list(scores.values())).mean().clamp_min(torch.finfo(torch.float32).tiny)
        for group, values in scores.items():
            part = coefficient * torch.log((values / mean).clamp_min(_SMALLEST))
            logs[group] = logs.get(group, 0.0) + part
    return {group: values.exp() for group, values in logs.items()}
