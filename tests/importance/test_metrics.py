"""One suite that every registered metric has to pass, and each metric against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import METRICS, find_metric
from adapruner.importance.metrics.interface import MetricInputs
from adapruner.importance.reduction import reduce_to_units
from adapruner.importance.statistics import collect_statistics
from adapruner.models.tracing import trace_structure
from tests.conftest import build_model, build_windows
from tests.oracles.metrics import gather, unit_scores

WEIGHTS = torch.tensor([0.4, 0.1, 0.2, 0.05, 0.25])
ORDERED = ("flap",)  # a running mean depends on the order of the samples, as its authors' code does
COUPLED = ("llama", "llama_gqa_2", "qwen3")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """Family -> model, structure, statistics, and what the oracle needs."""
    found = {}
    for name in COUPLED:
        model, windows = build_model(name), build_windows()
        structure = trace_structure(model)
        found[name] = (model, structure, collect_statistics(model, structure, windows), gather(model, windows))
    return found


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("family", COUPLED)
def test_conformance(cases: dict[str, Any], family: str, name: str) -> None:
    _, structure, statistics, _ = cases[family]
    metric = find_metric(name)
    assert metric.name == name
    assert metric.paper
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = type(statistics)(statistics.samples, statistics.tokens[order], statistics.loss[order], weights=statistics.weights)
    shuffled.member = {key: v[order] for key, v in statistics.member.items() if key[0] in metric.needs}  # only what it asked for
    shuffled.inputs = {key: v[order] for key, v in statistics.inputs.items() if key[0] in metric.needs}
    for group in structure.groups:
        scores = metric.score(MetricInputs(statistics, group, WEIGHTS, seed=7))
        assert scores.shape[0] in (1, len(group.members))
        assert scores.shape[1] == group.channels
        assert bool(torch.isfinite(scores).all())
        assert float(scores.min()) >= 0
        assert float(scores.std()) > 0
        torch.testing.assert_close(scores, metric.score(MetricInputs(statistics, group, WEIGHTS, seed=7)), rtol=0, atol=0)
        if name in ORDERED:
            continue
        torch.testing.assert_close(scores, metric.score(MetricInputs(shuffled, group, WEIGHTS[order], seed=7)), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"random"}))
@pytest.mark.parametrize("family", COUPLED)
def test_equals_its_formula(cases: dict[str, Any], family: str, name: str) -> None:
    model, structure, statistics, (gradients, inputs) = cases[family]
    for group in structure.groups[:4]:
        ours = reduce_to_units(find_metric(name).score(MetricInputs(statistics, group, WEIGHTS)), group)
        slow = unit_scores(name, model, group, gradients, inputs, WEIGHTS)
        torch.testing.assert_close(ours, slow, rtol=2e-3, atol=1e-8)


def test_random_differs_by_seed_and_group_and_not_within_a_unit(cases: dict[str, Any]) -> None:
    _, structure, statistics, _ = cases["llama"]
    group, other = structure.group(0, "attention"), structure.group(1, "attention")
    first = find_metric("random").score(MetricInputs(statistics, group, WEIGHTS, seed=1))
    assert not torch.equal(first, find_metric("random").score(MetricInputs(statistics, group, WEIGHTS, seed=2)))
    assert not torch.equal(first, find_metric("random").score(MetricInputs(statistics, other, WEIGHTS, seed=1)))
    assert all(len(set(row)) == 1 for row in first.view(4, 8).tolist())


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="got 'wanda'; did you mean 'wanda_sp'"):
        find_metric("wanda")


@pytest.mark.parametrize("over_members", ["sum", "mean", "max", "prod", "first"])
@pytest.mark.parametrize("over_head", ["sum", "mean", "max"])
def test_reductions_equal_loops(cases: dict[str, Any], over_members: str, over_head: str) -> None:
    group = cases["llama_gqa_2"][1].group(0, "attention")
    scores = torch.rand(4, group.channels, generator=torch.Generator().manual_seed(0))
    members = {
        "sum": sum,
        "mean": lambda v: sum(v) / len(v),
        "max": max,
        "prod": math.prod,
        "first": lambda v: v[0],
    }
    head = {"sum": sum, "mean": lambda v: sum(v) / len(v), "max": max}
    channels = [members[over_members]([float(scores[m, c]) for m in range(4)]) for c in range(group.channels)]  # type: ignore[operator]
    expected = [head[over_head](channels[u * 16 : (u + 1) * 16]) for u in range(2)]  # type: ignore[operator]
    torch.testing.assert_close(reduce_to_units(scores, group, over_members, over_head), torch.tensor(expected))


def test_unknown_reduction_names_the_nearest(cases: dict[str, Any]) -> None:
    group = cases["llama"][1].group(0, "ffn")
    with pytest.raises(ConfigurationError, match="reduction: expected a known reduction, got 'men'; did you mean 'mean'"):
        reduce_to_units(torch.rand(3, group.channels), group, "men")


def test_flap_is_the_recursion_over_samples_that_its_authors_publish(cases: dict[str, Any]) -> None:
    """One sample at a time: the mean so far, then the deviation from it; the first sample leaves none. Equal weights, up to a factor."""
    model, structure, statistics, (_, inputs) = cases["llama"]
    equal = torch.full((statistics.samples,), 1.0 / statistics.samples)
    for group in structure.groups:
        mean, fluctuation, states = torch.zeros(group.channels), torch.zeros(group.channels), inputs[group.output.module]
        for seen, x in enumerate(states):
            mean = mean * seen / (seen + 1) + x.mean(0) / (seen + 1)
            if seen:
                fluctuation = fluctuation * (seen - 1) / seen + (x - mean).square().sum(0) / (seen + 1)
        expected = fluctuation * model.get_submodule(group.output.module).weight.detach().square().sum(0)
        expected = expected.square() if group.kind == "attention" else expected
        found = find_metric("flap").score(MetricInputs(statistics, group, equal))[0]
        torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-3, atol=1e-7)
