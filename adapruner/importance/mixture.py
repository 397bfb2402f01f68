"""A mixture of metrics: the metric subspace of AdaPruner (arXiv 2503.06184) as we parametrise it.

With coefficients a_k >= 0, sum a_k = 1, and scores s_k brought to a common scale (by default divided by their mean over the
model): ``log``, score_u = exp(sum_k a_k log s_ku), a weighted geometric mean; ``additive``, score_u = sum_k a_k s_ku. One
coefficient alone gives back that metric's own ranking exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import find_metric
from adapruner.importance.metrics.interface import MetricInputs
from adapruner.importance.normalisation import normalise
from adapruner.importance.reduction import reduce_to_units
from adapruner.importance.statistics import UnitStatistics
from adapruner.models.units import ModelStructure

FORMS: tuple[str, ...] = ("log", "additive")
_SMALLEST = 1e-12


def score_metric(
    name: str,
    statistics: UnitStatistics,
    structure: ModelStructure,
    weights: Tensor,
    *,
    reduction: str = "sum",
    head_reduction: str = "sum",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Group name -> ``[units]`` float32 scores of one metric under sample weights ``[samples]``."""
    metric = find_metric(name)
    return {
        group.name: reduce_to_units(metric.score(MetricInputs(statistics, group, weights, seed)), group, reduction, head_reduction)
        for group in structure.groups
    }


def mix_metrics(
    coefficients: Mapping[str, float],
    statistics: UnitStatistics,
    structure: ModelStructure,
    weights: Tensor,
    *,
    reduction: str = "sum",
    head_reduction: str = "sum",
    form: str = "log",
    normaliser: str = "mean",
    scope: str = "model",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Group name -> ``[units]`` scores of the mixture; coefficients are scaled to sum 1, zeros drop out.

    Raises:
        ConfigurationError: if no coefficient is positive, or one is negative, or a name is unknown.
    """
    if not coefficients or min(coefficients.values()) < 0 or sum(coefficients.values()) <= 0:
        raise ConfigurationError(f"coefficients: expected non-negative values with a positive sum, got {dict(coefficients)}; name a metric")
    if form not in FORMS:
        raise ConfigurationError(f"form: expected 'log' or 'additive', got {form!r}; name one of them")
    active = {name: value / sum(coefficients.values()) for name, value in coefficients.items() if value > 0}
    mixed: dict[str, Tensor] = {}
    for name, coefficient in active.items():
        scores = score_metric(name, statistics, structure, weights, reduction=reduction, head_reduction=head_reduction, seed=seed)
        for group, values in normalise(scores, structure, normaliser, scope).items():
            part = coefficient * (torch.log(values.clamp_min(_SMALLEST)) if form == "log" else values)
            mixed[group] = mixed.get(group, 0.0) + part
    return {group: values.exp() if form == "log" else values for group, values in mixed.items()}
