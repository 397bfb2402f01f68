"""Random sets of the winner's size, and what is said about them."""

from __future__ import annotations

import math

import pytest
import torch

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.calibration.spread import CalibrationSpread, random_sets, set_size
from adapruner.errors import ConfigurationError

POOL = CalibrationPool(CalibrationGroups(("a", "b"), torch.tensor([0] * 12 + [1] * 4)))


def test_sets_have_the_effective_size_of_the_winner() -> None:
    winner = CalibrationChoice({"a": 1.0, "b": 0.0}, seq_len=64)
    assert set_size(POOL, winner) == 12
    sets = random_sets(POOL, winner, repeats=6, seed=3)
    assert len(sets) == 6
    for choice in sets:
        assert choice.seq_len == 64
        assert choice.samples is not None
        weights = POOL.sample_weights(choice)
        assert int((weights > 0).sum()) == 12 == len(set(choice.samples))
        assert weights[weights > 0].tolist() == pytest.approx([1 / 12] * 12)
    assert len({tuple(choice.samples or ()) for choice in sets}) > 1
    assert random_sets(POOL, winner, repeats=2, seed=3) == sets[:2]
    assert random_sets(POOL, winner, repeats=6, seed=4) != sets


def test_the_size_is_that_of_weights_not_of_a_count() -> None:
    weights = [0.9 / 12] * 12 + [0.1 / 4] * 4
    assert set_size(POOL, CalibrationChoice({"a": 0.9, "b": 0.1})) == round(1 / sum(w * w for w in weights)) == 14
    assert set_size(POOL, CalibrationChoice(samples=[5])) == 1


def test_draws_are_uniform() -> None:
    counts = torch.zeros(16)
    for choice in random_sets(POOL, CalibrationChoice(samples=[0, 1, 2, 3]), repeats=800):
        counts[choice.samples] += 1
    assert counts.sum() == 3200
    assert 150 < counts.min() <= counts.max() < 255  # 200 expected, standard deviation 12


def test_nothing_to_draw_when_the_whole_pool_has_weight() -> None:
    assert random_sets(POOL, CalibrationChoice()) == []
    with pytest.raises(ConfigurationError, match="repeats: expected 1 or more random sets, got 0"):
        random_sets(POOL, CalibrationChoice(), repeats=0)


def test_a_spread_counts_what_is_finite() -> None:
    spread = CalibrationSpread(36, (4.0, 5.0, math.inf, 6.0), 4.5)
    assert (spread.mean, spread.std) == (5.0, 1.0)
    assert spread.to_dict() == {"size": 36, "values": [4.0, 5.0, None, 6.0], "mean": 5.0, "std": 1.0, "chosen": 4.5}
    lost = CalibrationSpread(36, (math.nan,), math.inf).to_dict()
    assert lost == {"size": 36, "values": [None], "mean": None, "std": 0.0, "chosen": None}
