from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
import torch

from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import METRICS
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.search.seed_trials import SeedTrials
from adapruner.search.space import DEFAULT_METRICS, SearchSpace, softmax
from adapruner.search.trials import TrialRecord

SOURCES = ("books", "code", "wiki")


def pool_of(*names: str, clusters: int = 0) -> CalibrationPool:
    """Two samples of each source."""
    index = torch.arange(len(names)).repeat_interleave(2)
    groups = CalibrationGroups(tuple(f"cluster {i}" for i in range(clusters)), torch.arange(len(index)) % clusters) if clusters else None
    return CalibrationPool(CalibrationGroups(names, index), groups)


POOL = pool_of(*SOURCES)


def suggested(space: SearchSpace, point: dict[str, Any], pool: CalibrationPool = POOL) -> Recipe:
    return space.suggest(optuna.trial.FixedTrial(point), pool)


def test_a_seed_trial_is_the_plain_metric(problem: PruningProblem) -> None:
    space = SearchSpace(metrics=sorted(METRICS))
    points = dict(SeedTrials(space, POOL).first)
    hashes = set()
    for metric in METRICS:
        plain = make_plan(problem, Recipe({metric: 1.0}, allocation=Allocation("gamma", 0.0)))
        assert make_plan(problem, suggested(space, points[metric])).kept == plain.kept
        hashes.add(plain.hash)
    assert len(hashes) > len(METRICS) // 2  # the metrics do disagree on this model


def test_seed_trials_cover_metrics_then_sources() -> None:
    space = SearchSpace()
    points = SeedTrials(space, POOL)
    assert [name for name, _ in points.first] == [*DEFAULT_METRICS, *(f"taylor_second on {source}" for source in SOURCES)]
    recipe = suggested(space, dict(points.first)["taylor_second on code"])
    assert recipe.calibration.source_weights is not None
    assert recipe.calibration.source_weights["code"] == pytest.approx(math.exp(6) / (math.exp(6) + 2))
    assert [m for m, c in recipe.coefficients.items() if c > 0] == ["taylor_second"]


def test_the_last_seed_trials_go_to_the_best_source() -> None:
    points = SeedTrials(SearchSpace(metrics=["l2", "taylor_second", "wanda_sp"]), POOL)
    values = {"taylor_second on books": 3.0, "taylor_second on code": 2.0, "taylor_second on wiki": 2.5}
    done = [TrialRecord(i, name, "complete", values.get(name, 1.0), 0.0, {}, f"hash {i}") for i, (name, _) in enumerate(points.first)]
    assert [points.limit(n, 9) for n in (0, 4, 6)] == [6, 2, 9]
    assert [points.at(i, done)[0] for i in (6, 7)] == ["l2 on code", "wanda_sp on code"]  # type: ignore[index]
    assert points.at(8, done) is None
    assert len(points) == 8


def test_one_source_or_no_logit_leaves_the_sources_out() -> None:
    for space, pool in ((SearchSpace(), pool_of("books")), (SearchSpace(source_logit=0.0), POOL)):
        points = SeedTrials(space, pool).first
        assert len(points) == len(SeedTrials(space, pool)) == len(DEFAULT_METRICS)
        assert not any(name.startswith("source/") for _, point in points for name in point)
        assert suggested(space, points[0][1], pool).calibration.source_weights is None


def test_every_suggestion_stays_in_its_bounds() -> None:
    space = SearchSpace(source_logit=2.0, coefficient_off=0.5, gamma=[0.2, 0.4], log_head_multiplier=[0.5, 1.0])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    gammas = []
    for _ in range(200):
        recipe = space.suggest(study.ask(), POOL)
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
    for _, point in SeedTrials(space, POOL).first:  # the seed trials, too
        assert point["gamma"] == 0.2
        assert point["log_head_multiplier"] == 0.5


def test_all_metrics_off_means_all_alike() -> None:
    space = SearchSpace(metrics=["l1", "l2"])
    recipe = space.recipe({"reduction": "sum", "gamma": 0.0, "log_head_multiplier": 0.0, "metric/l1": -0.1, "metric/l2": 0.0})
    assert recipe.coefficients == {"l1": 1.0, "l2": 1.0}


def test_every_dimension_can_be_searched_together() -> None:
    space = SearchSpace(
        reductions=["sum", "max"],
        head_reductions=["sum", "mean"],
        forms=["log", "additive"],
        normalisers=["mean", "rank"],
        scopes=["model", "layer"],
        bias_compensations=[False, True],
        subset_sizes=[2, 4],
        subset_seeds=5,
        seq_lens=[64, 128],
        depth_slope=[-0.5, 0.5],
        depth_curve=[-0.25, 0.25],
        pruned_fraction=[0.2, 0.6],
        log10_ridge=[-3.0, -1.0],
    )
    pool = pool_of(*SOURCES, clusters=2)
    space.check_pool(pool, [64, 128])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    recipes = [space.suggest(study.ask(), pool) for _ in range(60)]
    for name in ("reduction", "head_reduction", "form", "normaliser", "scope", "bias_compensation"):
        assert len({getattr(r, name) for r in recipes}) == 2
    assert {r.calibration.count for r in recipes} == {2, 4}
    assert {r.calibration.seed for r in recipes} == set(range(5))
    assert {r.calibration.seq_len for r in recipes} == {64, 128}
    assert all(set(r.calibration.cluster_weights or {}) == {"cluster 0", "cluster 1"} for r in recipes)
    assert all(-0.5 <= r.allocation.depth_slope <= 0.5 and -0.25 <= r.allocation.depth_curve <= 0.25 for r in recipes)
    assert all(r.ridge is not None and 1e-3 <= r.ridge <= 1e-1 for r in recipes)
    assert all(r.pruned_fraction is not None and 0.2 <= r.pruned_fraction <= 0.6 for r in recipes)
    for _, point in SeedTrials(space, pool).first:  # and the seed trials lie inside
        suggested(space, point, pool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_lens": [32]}, r"search.space.seq_lens: expected lengths of the pool \(64, 128\), got 32"),
        ({"subset_sizes": [7]}, "search.space.subset_sizes: expected at most 6 samples, got 7"),
    ],
)
def test_what_the_pool_does_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SearchSpace(**options).check_pool(POOL, [64, 128])


def test_softmax_is_a_distribution_whatever_the_logits() -> None:
    weights = softmax({"a": 1000.0, "b": 999.0, "c": -1000.0})
    assert weights["a"] / weights["b"] == pytest.approx(math.e)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["c"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": ["talyor_second"]},
            "search.space.metrics: expected a known metric, got 'talyor_second'; did you mean 'taylor_second'",
        ),
        ({"metrics": []}, "search.space.metrics: expected at least one metric, got none"),
        ({"reductions": ["summ"]}, "search.space.reductions: expected known reductions, got 'summ'; did you mean 'sum'"),
        ({"reductions": []}, "search.space.reductions: expected known reductions, got 'none'"),
        ({"gamma": [1.0, 0.0]}, r"search.space.gamma: expected \[low, high\] with low <= high, got \[1.0, 0.0\]"),
        ({"log_head_multiplier": [0.0]}, r"search.space.log_head_multiplier: expected \[low, high\]"),
        ({"gamma": [math.nan, 1.0]}, r"search.space.gamma: expected \[low, high\]"),
        ({"gamma": [0.0, math.inf]}, "search.space.gamma: expected"),
        ({"source_logit": -1.0}, "search.space.source_logit: expected a number of 0 or more, got -1.0"),
        ({"depth_slope": [1.0, 0.0]}, "search.space.depth_slope: expected"),
        ({"log10_ridge": [0.0]}, "search.space.log10_ridge: expected"),
        ({"subset_sizes": [0]}, "search.space.subset_sizes: expected 1 or more, got 0"),
        ({"seq_lens": [1]}, "search.space.seq_lens: expected 2 or more, got 1"),
        ({"subset_seeds": 0}, "search.space.subset_seeds: expected 1 or more, got 0"),
        ({"head_reductions": ["sun"]}, "search.space.head_reductions: expected known head_reductions, got 'sun'; did you mean 'sum'"),
        ({"coefficient_off": math.inf}, "search.space.coefficient_off: expected a number of 0 or more, got inf"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SearchSpace(**options)
