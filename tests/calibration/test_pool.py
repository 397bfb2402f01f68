"""A choice made into sample weights: against loops, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.errors import ConfigurationError

SOURCES = CalibrationGroups(("books", "wiki"), torch.tensor([0, 1, 0, 1, 1]))
POOL = CalibrationPool(SOURCES, CalibrationGroups(("cluster 0", "cluster 1"), torch.tensor([0, 0, 1, 1, 1])))


def test_all_weigh_the_same_by_default() -> None:
    assert POOL.sample_weights().tolist() == pytest.approx([0.2] * 5)


def test_a_sources_weight_is_shared_by_its_samples() -> None:
    choice = CalibrationChoice({"books": 1.0, "wiki": 3.0})
    assert POOL.sample_weights(choice).tolist() == pytest.approx([0.125, 0.25, 0.125, 0.25, 0.25])


def test_sources_clusters_and_samples_multiply() -> None:
    choice = CalibrationChoice({"books": 1.0, "wiki": 3.0}, {"cluster 0": 2.0, "cluster 1": 1.0}, samples=[0, 1, 2])
    raw = [0.125 * 2 / 2, 0.25 * 2 / 2, 0.125 * 1 / 3, 0.0, 0.0]
    assert POOL.sample_weights(choice).tolist() == pytest.approx([r / sum(raw) for r in raw])


@pytest.mark.parametrize("seed", range(5))
def test_a_draw_has_so_many_samples_of_equal_weight_and_none_of_weight_0(seed: int) -> None:
    weights = POOL.sample_weights(CalibrationChoice({"books": 0.0, "wiki": 1.0}, count=2, seed=seed))
    assert sorted(weights.tolist()) == pytest.approx([0, 0, 0, 0.5, 0.5])
    assert weights[0] == weights[2] == 0
    assert torch.equal(weights, POOL.sample_weights(CalibrationChoice({"books": 0.0, "wiki": 1.0}, count=2, seed=seed)))


def test_draws_follow_the_odds() -> None:
    pool = CalibrationPool(CalibrationGroups(("a", "b"), torch.tensor([0, 1])))
    drawn = sum(int(pool.sample_weights(CalibrationChoice({"a": 0.8, "b": 0.2}, count=1, seed=s))[0]) for s in range(1000))
    assert 760 <= drawn <= 840


def test_a_choice_survives_json() -> None:
    choice = CalibrationChoice({"books": 1.0}, samples=[1], count=1, seed=3, seq_len=64)
    assert CalibrationChoice.from_dict(choice.to_dict()) == choice
    assert CalibrationChoice.from_dict(None) == CalibrationChoice()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"source_weights": {"wikis": 1.0}}, "source_weights: expected a calibration source, got 'wikis'; did you mean 'wiki'"),
        ({"source_weights": {"books": 0.0}}, "source_weights: expected one positive weight, got none"),
        ({"source_weights": {"books": -1.0}}, "source_weights: expected finite weights of 0 or more, got books: -1.0"),
        ({"cluster_weights": {"cluster 9": 1.0}}, "cluster_weights: expected a calibration cluster, got 'cluster 9'"),
        ({"samples": [7]}, "calibration.samples: expected positions below 5, got 7"),
        ({"samples": []}, "calibration.samples: expected positions of 0 or more, got"),
        ({"count": 0}, "calibration.count: expected 1 or more, got 0"),
        ({"source_weights": {"wiki": 1.0}, "samples": [0]}, "expected one sample with a positive weight, got none"),
    ],
)
def test_refusals(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        POOL.sample_weights(CalibrationChoice(**choice))


def test_clusters_must_be_there() -> None:
    with pytest.raises(ConfigurationError, match="cluster_weights: expected a pool with clusters, got one without"):
        CalibrationPool(SOURCES).sample_weights(CalibrationChoice(cluster_weights={"cluster 0": 1.0}))


def test_base_weights_multiply_every_choice() -> None:
    base = torch.tensor([4.0, 1.0, 0.0, 2.0, 3.0])
    pool = CalibrationPool(SOURCES, POOL.clusters, base)
    assert pool.sample_weights().tolist() == pytest.approx((base / 10).tolist())
    for choice in (
        CalibrationChoice({"books": 1.0, "wiki": 3.0}),
        CalibrationChoice(cluster_weights={"cluster 1": 1.0}, samples=[1, 3, 4]),
    ):
        raw = [w * b for w, b in zip(POOL.sample_weights(choice).tolist(), base.tolist(), strict=True)]
        assert pool.sample_weights(choice).tolist() == pytest.approx([r / sum(raw) for r in raw])
    drawn = [pool.sample_weights(CalibrationChoice(count=4, seed=seed)) for seed in range(20)]
    assert all(sorted(w.tolist()) == pytest.approx([0, 0.25, 0.25, 0.25, 0.25]) and w[2] == 0 for w in drawn)


def test_a_pool_of_windows_has_their_sources() -> None:
    from adapruner.data.windows import TextWindows

    ids = torch.zeros(5, 3, dtype=torch.long)
    windows = TextWindows(ids, ids, ids + 1, ["books", "wiki"], SOURCES.index, ["h"] * 5)
    pool = CalibrationPool.of_windows(windows, POOL.clusters, torch.ones(5))
    assert pool.sources.names == SOURCES.names
    assert pool.clusters is POOL.clusters
    assert pool.sample_weights().tolist() == pytest.approx([0.2] * 5)


def test_shares_are_counts_and_sums() -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    shares = SOURCES.shares(weights)
    assert shares["books"] == {"samples": 2, "weight": pytest.approx(0.4)}
    assert shares["wiki"] == {"samples": 3, "weight": pytest.approx(0.6)}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ([1.0, 1.0], r"base_weights: expected 5 finite weights of 0 or more with a positive sum, got \(2,\)"),
        ([1.0, -1.0, 1.0, 1.0, 1.0], "base_weights: expected 5 finite weights of 0 or more"),
        ([0.0] * 5, "base_weights: .* with sum 0.0"),
        ([float("nan")] * 5, "base_weights: .* with sum nan"),
        ([float("inf")] * 5, "base_weights: .* with sum inf"),
    ],
)
def test_base_weights_are_checked(base: list[float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CalibrationPool(SOURCES, base_weights=torch.tensor(base))


def test_clusters_must_be_those_of_the_samples() -> None:
    with pytest.raises(ConfigurationError, match="clusters: expected one for each of 5 samples, got 2; cluster the same windows"):
        CalibrationPool(SOURCES, CalibrationGroups(("cluster 0",), torch.tensor([0, 0])))
