"""The refit's own windows: what they weigh, and that a refit on them is the one that is made by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from adapruner.calibration.choice import CalibrationChoice
from adapruner.data.run_data import RunData
from adapruner.pruning.problem import make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.post_pruning import PostPruning, refit_plan
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from tests.tiny import prepare_problem, random_windows, tiny_llama

POOL = random_windows(2, 24, seed=5, sources=("books", "code", "wiki"))
OWN = random_windows(4, 24, seed=7, sources=("wiki", "mail"))
CONFIG = ReconstructionConfig(batch_size=4)


def run_data(own: Any = OWN) -> RunData:
    return RunData(POOL, POOL, {24: POOL}, "0" * 16, reconstruction_windows=own)


def by_hand(model: Any, problem: Any, plan: Any, ids: torch.Tensor, weights: list[float]) -> dict[str, torch.Tensor]:
    prune_and_reconstruct(model, problem.structure, plan, ids, CONFIG, sample_weights=torch.tensor(weights))
    return dict(model.state_dict())


def test_windows_weigh_what_their_source_weighs_in_the_pool() -> None:
    """Wiki thrice the others: the pool's mean weight is 5/3 of theirs, which is what a source that the pool does not have gets."""
    dense = tiny_llama()
    problem = prepare_problem(dense, POOL)
    choice = CalibrationChoice(source_weights={"books": 1.0, "code": 1.0, "wiki": 3.0})
    plan = make_plan(problem, Recipe({"l1": 1.0}, calibration=choice))
    expected = by_hand(copy.deepcopy(dense), problem, plan, OWN.input_ids, [3.0 if s == 0 else 5 / 3 for s in OWN.source_index.tolist()])
    refit_plan(dense, problem, plan, PostPruning.of_data(run_data(), CONFIG, None))
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_without_windows_of_its_own_the_refit_sees_the_pool() -> None:
    dense = tiny_llama()
    problem = prepare_problem(dense, POOL)
    plan = make_plan(problem, Recipe({"l1": 1.0}))
    expected = by_hand(copy.deepcopy(dense), problem, plan, POOL.input_ids, [1.0] * 6)
    refit_plan(dense, problem, plan, PostPruning.of_data(run_data(own=None), CONFIG, None))
    for name, value in dense.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_padded_windows_are_left_out_with_their_sources() -> None:
    padded = replace(OWN, attention_mask=OWN.attention_mask.clone())
    padded.attention_mask[1, -3:] = 0
    found = PostPruning.of_data(run_data(padded), CONFIG, None)
    assert found.sources is not None
    assert torch.equal(found.input_ids, OWN.input_ids[[0, 2, 3, 4, 5, 6, 7]])
    assert found.sources[1].tolist() == OWN.source_index[[0, 2, 3, 4, 5, 6, 7]].tolist()


def test_a_source_without_samples_in_the_pool_decides_nothing() -> None:
    """One that the search has whole: its mean there is none, and must not end the refit in silence."""
    dense = tiny_llama()
    names = [*POOL.source_names, "held out whole"]
    problem = prepare_problem(dense, replace(POOL, source_names=names))
    plan = make_plan(problem, Recipe({"l1": 1.0}))
    other = replace(OWN, source_names=["held out whole", "mail"])
    expected = by_hand(copy.deepcopy(dense), problem, plan, OWN.input_ids, [1.0] * 8)
    refit_plan(dense, problem, plan, PostPruning.of_data(run_data(other), CONFIG, None))
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_draw_of_the_pool_says_nothing_of_other_windows() -> None:
    dense = tiny_llama()
    problem = prepare_problem(dense, POOL)
    plan = make_plan(problem, Recipe({"l1": 1.0}, calibration=CalibrationChoice(count=1)))
    expected = by_hand(copy.deepcopy(dense), problem, plan, OWN.input_ids, [1.0] * 8)
    refit_plan(dense, problem, plan, PostPruning.of_data(run_data(), CONFIG, None))
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
