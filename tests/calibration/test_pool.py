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


def test_all_speak_alike_by_default() -> None:
    assert POOL.sample_weights().tolist() == pytest.approx([0.2] * 5)


def test_a_sources_weight_is_shared_by_its_samples() -> None:
    choice = CalibrationChoice({"books": 1.0, "wiki": 3.0})
    assert POOL.sample_weights(choice).tolist() == pytest.approx([0.125, 0.25, 0.125, 0.25, 0.25])


def test_sources_clusters_and_samples_multiply() -> None:
    choice = CalibrationChoice({"books": 1.0, "wiki": 3.0}, {"cluster 0": 2.0, "cluster 1": 1.0}, samples=[0, 1, 2])
    raw = [0.125 * 2 / 2, 0.25 * 2 / 2, 0.125 * 1 / 3, 0.0, 0.0]
    assert POOL.sample_weights(choice).tolist() == pytest.approx([r / sum(raw) for r in raw])


@pytest.mark.parametrize("seed", range(5))
def test_a_draw_has_so_many_samples_that_speak_alike_and_spares_the_silent(seed: int) -> None:
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
