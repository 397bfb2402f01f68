from __future__ import annotations

import math
from typing import Any

import optuna
import pytest

from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import METRICS
from adapruner.pipeline import PruningProblem, Recipe, make_plan
from adapruner.pruning.allocation import Allocation
from adapruner.search.space import DEFAULT_METRICS, SearchSpace, softmax

SOURCES = ("books", "code", "wiki")


def suggested(space: SearchSpace, point: dict[str, Any], sources: tuple[str, ...] = SOURCES) -> Recipe:
    return space.suggest(optuna.trial.FixedTrial(point), sources)


def test_a_fixed_point_is_the_plain_metric(problem: PruningProblem) -> None:
    space = SearchSpace(metrics=sorted(METRICS))
    points = dict(space.fixed_points(SOURCES))
    hashes = set()
    for metric in METRICS:
        plain = make_plan(problem, Recipe({metric: 1.0}, allocation=Allocation("gamma", 0.0)))
        assert make_plan(problem, suggested(space, points[metric])).kept == plain.kept
        hashes.add(plain.hash)
    assert len(hashes) > len(METRICS) // 2  # the metrics do disagree on this model


def test_fixed_points_cover_metrics_then_sources() -> None:
    space = SearchSpace()
    names = [name for name, _ in space.fixed_points(SOURCES)]
    assert names == [*DEFAULT_METRICS, *(f"taylor_second on {source}" for source in SOURCES)]
    recipe = suggested(space, dict(space.fixed_points(SOURCES))["taylor_second on code"])
    assert recipe.calibration.source_weights is not None
    assert recipe.calibration.source_weights["code"] == pytest.approx(math.exp(6) / (math.exp(6) + 2))
    assert [m for m, c in recipe.coefficients.items() if c > 0] == ["taylor_second"]


def test_one_source_or_no_logit_leaves_the_sources_out() -> None:
    for space, sources in ((SearchSpace(), ("books",)), (SearchSpace(source_logit=0.0), SOURCES)):
        points = space.fixed_points(sources)
        assert len(points) == len(DEFAULT_METRICS)
        assert not any(name.startswith("source/") for _, point in points for name in point)
        assert suggested(space, points[0][1], sources).calibration.source_weights is None


def test_every_suggestion_stays_in_its_bounds() -> None:
    space = SearchSpace(source_logit=2.0, coefficient_off=0.5, gamma=[0.2, 0.4], log_head_multiplier=[0.5, 1.0])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    gammas = []
    for _ in range(200):
        recipe = space.suggest(study.ask(), SOURCES)
        gammas.append(recipe.allocation.gamma)
        assert recipe.calibration.source_weights is not None
        assert sum(recipe.calibration.source_weights.values()) == pytest.approx(1.0)
        assert max(recipe.calibration.source_weights.values()) <= math.exp(4) / (math.exp(4) + 2) + 1e-9
        assert set(recipe.coefficients) == set(DEFAULT_METRICS)
        assert 0 <= min(recipe.coefficients.values()) <= max(recipe.coefficients.values()) <= 1
        assert max(recipe.coefficients.values()) > 0
        assert 0.5 <= recipe.allocation.log_head_multiplier <= 1.0
        assert recipe.reduction in ("sum", "max")
    assert 0.2 <= min(gammas) < 0.25 < 0.35 < max(gammas) <= 0.4
    for _, point in space.fixed_points(SOURCES):  # the fixed points, too
        assert point["gamma"] == 0.2
        assert point["log_head_multiplier"] == 0.5


def test_all_metrics_off_means_all_alike() -> None:
    space = SearchSpace(metrics=["l1", "l2"])
    recipe = space.recipe({"reduction": "sum", "gamma": 0.0, "log_head_multiplier": 0.0}, {"l1": -0.1, "l2": 0.0}, None)
    assert recipe.coefficients == {"l1": 1.0, "l2": 1.0}


def test_softmax_is_a_distribution_whatever_the_logits() -> None:
    weights = softmax({"a": 1000.0, "b": 999.0, "c": -1000.0})
    assert weights["a"] / weights["b"] == pytest.approx(math.e)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["c"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["talyor_second"]}, "metric: expected a known metric, got 'talyor_second'; did you mean 'taylor_second'"),
        ({"metrics": []}, "search.space.metrics: expected at least one metric, got none"),
        ({"reductions": ["summ"]}, "search.space.reductions: expected known reductions, got 'summ'; did you mean 'sum'"),
        ({"reductions": []}, "search.space.reductions: expected known reductions, got 'none'"),
        ({"gamma": [1.0, 0.0]}, r"search.space.gamma: expected \[low, high\] with low <= high, got \[1.0, 0.0\]"),
        ({"log_head_multiplier": [0.0]}, r"search.space.log_head_multiplier: expected \[low, high\]"),
        ({"gamma": [math.nan, 1.0]}, r"search.space.gamma: expected \[low, high\]"),
        ({"gamma": [0.0, math.inf]}, "search.space.gamma: expected"),
        ({"source_logit": -1.0}, "search.space.source_logit: expected a number of 0 or more, got -1.0"),
        ({"coefficient_off": math.inf}, "search.space.coefficient_off: expected a number of 0 or more, got inf"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SearchSpace(**options)
