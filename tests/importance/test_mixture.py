"""The log-linear mixture: a weighted geometric mean of metrics on a common scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import find_metric
from adapruner.importance.metrics.interface import MetricInputs
from adapruner.importance.mixture import mix_metrics, score_metric
from adapruner.importance.statistics import collect_statistics
from adapruner.models.tracing import trace_structure
from tests.conftest import build_model, build_windows

WEIGHTS = torch.full((5,), 0.2)


@pytest.fixture(scope="module")
def case() -> Any:
    model = build_model("llama_gqa_2")
    structure = trace_structure(model)
    return structure, collect_statistics(model, structure, build_windows())


def test_one_metric_alone_keeps_its_ratios(case: Any) -> None:
    structure, statistics = case
    alone = score_metric("wanda_sp", statistics, structure, WEIGHTS)
    mixed = mix_metrics({"wanda_sp": 0.3, "l2": 0.0}, statistics, structure, WEIGHTS)
    mean = torch.cat(list(alone.values())).mean()
    for group in alone:
        torch.testing.assert_close(mixed[group], alone[group] / mean, rtol=1e-4, atol=0)


def test_mixture_is_the_geometric_mean(case: Any) -> None:
    structure, statistics = case
    one, two = (score_metric(m, statistics, structure, WEIGHTS) for m in ("l2", "gate_fisher"))
    mixed = mix_metrics({"l2": 3.0, "gate_fisher": 1.0}, statistics, structure, WEIGHTS)
    means = [torch.cat(list(s.values())).mean() for s in (one, two)]
    for group in one:
        expected = (one[group] / means[0]) ** 0.75 * (two[group] / means[1]) ** 0.25
        torch.testing.assert_close(mixed[group], expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("coefficients", [{}, {"l2": 0.0}, {"l2": 1.0, "l1": -0.1}])
def test_coefficients_that_mean_nothing(case: Any, coefficients: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="expected non-negative values with a positive sum, got"):
        mix_metrics(coefficients, case[1], case[0], WEIGHTS)


def test_additive_mixture_is_the_weighted_sum(case: Any) -> None:
    structure, statistics = case
    one, two = (score_metric(m, statistics, structure, WEIGHTS) for m in ("l2", "gate_fisher"))
    tops = [torch.cat(list(s.values())).max() for s in (one, two)]
    mixed = mix_metrics({"l2": 1.0, "gate_fisher": 3.0}, statistics, structure, WEIGHTS, form="additive", normaliser="max")
    for group in one:
        torch.testing.assert_close(mixed[group], 0.25 * one[group] / tops[0] + 0.75 * two[group] / tops[1])
    with pytest.raises(ConfigurationError, match="form: expected 'log' or 'additive', got 'sum'"):
        mix_metrics({"l2": 1.0}, statistics, structure, WEIGHTS, form="sum")


def test_normalised_before_the_reduction(case: Any) -> None:
    """Channels' z-scores within each layer, then their mean over a unit: another order of heads than z-scores of their means."""
    structure, statistics = case
    options = {"head_reduction": "mean", "normaliser": "standardise", "scope": "layer", "form": "additive"}
    found = mix_metrics({"flap": 1.0}, statistics, structure, WEIGHTS, score_order="normalise_first", **options)  # type: ignore[arg-type]
    shifts = []
    for group in structure.groups:
        channels = find_metric("flap").score(MetricInputs(statistics, group, WEIGHTS))[0]
        z = (channels - channels.mean()) / channels.std()
        expected = torch.stack([part.mean() for part in z.split(group.channels_per_unit)])
        shifts.append(found[group.name] - expected)
    assert float(torch.cat(shifts).std()) < 1e-5
    other = mix_metrics({"flap": 1.0}, statistics, structure, WEIGHTS, **options)  # type: ignore[arg-type]
    assert max(float((other[n] - found[n] - (other[n] - found[n]).mean()).abs().max()) for n in found) > 1e-2
    with pytest.raises(ConfigurationError, match="score_order: expected 'reduce_first' or 'normalise_first', got 'both'"):
        mix_metrics({"l2": 1.0}, statistics, structure, WEIGHTS, score_order="both")
