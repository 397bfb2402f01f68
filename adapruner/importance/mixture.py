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
from adapruner.importance.normalisation import made_positive, normalise
from adapruner.importance.reduction import over_head, over_members, reduce_to_units
from adapruner.importance.statistics import UnitStatistics
from adapruner.models.units import ModelStructure

FORMS: tuple[str, ...] = ("log", "additive")
#: What comes first: the reduction over a head's channels, or the normaliser.
SCORE_ORDERS: tuple[str, ...] = ("reduce_first", "normalise_first")
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


def score_channels(
    name: str, statistics: UnitStatistics, structure: ModelStructure, weights: Tensor, reduction: str = "sum", seed: int = 0
) -> dict[str, Tensor]:
    """Group name -> ``[channels]`` float32 scores of one metric, over the coupled tensors."""
    metric = find_metric(name)
    return {group.name: over_members(metric.score(MetricInputs(statistics, group, weights, seed)), reduction) for group in structure.groups}


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
    score_order: str = "reduce_first",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Group name -> ``[units]`` scores of the mixture; coefficients are scaled to sum 1, zeros drop out.

    Args:
        score_order: ``reduce_first`` reduces to units, then normalises; ``normalise_first`` the other way round.

    Raises:
        ConfigurationError: if no coefficient is positive, or one is negative, or a name is unknown.
    """
    if not coefficients or min(coefficients.values()) < 0 or sum(coefficients.values()) <= 0:
        raise ConfigurationError(f"coefficients: expected non-negative values with a positive sum, got {dict(coefficients)}; name a metric")
    if form not in FORMS:
        raise ConfigurationError(f"form: expected 'log' or 'additive', got {form!r}; name one of them")
    if score_order not in SCORE_ORDERS:
        raise ConfigurationError(f"score_order: expected 'reduce_first' or 'normalise_first', got {score_order!r}; name one of them")
    active = {name: value / sum(coefficients.values()) for name, value in coefficients.items() if value > 0}
    mixed: dict[str, Tensor] = {}
    for name, coefficient in active.items():
        if score_order == "reduce_first":
            scores = score_metric(name, statistics, structure, weights, reduction=reduction, head_reduction=head_reduction, seed=seed)
            scores = normalise(scores, structure, normaliser, scope)
        else:
            scores = score_channels(name, statistics, structure, weights, reduction, seed)
            scores = normalise(scores, structure, normaliser, scope)
            scores = {group.name: over_head(scores[group.name], group, head_reduction) for group in structure.groups}
        for group, values in (made_positive(scores) if normaliser == "standardise" else scores).items():
            part = coefficient * (torch.log(values.clamp_min(_SMALLEST)) if form == "log" else values)
            mixed[group] = mixed.get(group, 0.0) + part
    return {group: values.exp() if form == "log" else values for group, values in mixed.items()}
