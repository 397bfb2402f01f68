"""A refit that makes unseen text worse is taken back to the last bit; one that helps stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from adapruner.data.run_data import RunData
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.pruning.problem import PruningProblem, bias_means, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import prune_model
from adapruner.recovery import judged_refit
from adapruner.recovery.judged_refit import JudgedRefit, refit_if_better
from adapruner.recovery.post_pruning import PostPruning, refit_plan
from adapruner.recovery.reconstruction import ReconstructionConfig
from tests.tiny import prepare_problem, random_windows, tiny_llama

POOL = random_windows(4, 24, seed=5, sources=("books", "code"))
#: Two windows for 128 channels, hardly damped: the refit fits them alone.
FEW = random_windows(1, 24, seed=6, sources=("books", "code"))
HARMFUL = ReconstructionConfig(batch_size=4, ridge=1e-5)


def scored(**recipe: Any) -> tuple[Any, PruningProblem, Any]:
    model = tiny_llama()
    problem = prepare_problem(model, POOL)
    return model, problem, make_plan(problem, Recipe({"l1": 1.0}, **recipe))


def how(config: ReconstructionConfig, windows: Any = POOL) -> PostPruning:
    return PostPruning.of_data(RunData(POOL, POOL, {}, "0" * 16, reconstruction_windows=windows), config, None)


def judged_on(model: Any) -> Any:
    """Text that the dense model itself thinks likely."""
    found = random_windows(4, 24, seed=11, sources=("books", "code"))
    with torch.no_grad():
        found.labels[:, 1:] = model(found.input_ids).logits.argmax(-1)[:, :-1]
    return found


@pytest.mark.parametrize("bias", [False, True])
def test_a_refit_that_harms_is_taken_back_to_the_last_bit(bias: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model, problem, plan = scored(bias_compensation=bias)
    text, expected = judged_on(model), copy.deepcopy(model)
    prune_model(expected, problem.structure, plan, bias_means(problem, Recipe({"l1": 1.0}, bias_compensation=bias)))
    found = refit_if_better(model, problem, plan, how(HARMFUL, FEW), text)
    assert found is not None
    assert found.left_out
    assert found.pruned == evaluate_nll(expected, text).nll < found.refitted
    values = dict(model.state_dict())
    assert values.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert "left out" in capsys.readouterr().out


def test_a_refit_that_helps_stays() -> None:
    model, problem, plan = scored()
    text, expected = judged_on(model), copy.deepcopy(model)
    many = how(ReconstructionConfig(ridge=0.1), random_windows(40, 24, seed=11, sources=("books", "code")))
    refit_plan(expected, problem, plan, many)
    found = refit_if_better(model, problem, plan, many, text)
    assert found is not None
    assert not found.left_out
    assert found.refitted == evaluate_nll(expected, text).nll < found.pruned
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_nobody_judges_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, problem, plan = scored()
    monkeypatch.setattr(judged_refit, "evaluate_nll", lambda *_: pytest.fail("the text is read"))
    config = ReconstructionConfig(batch_size=4, ridge=1e-5, only_if_better=False)
    expected = copy.deepcopy(model)
    refit_plan(expected, problem, plan, how(config, FEW))
    assert refit_if_better(model, problem, plan, how(config, FEW), POOL) is None
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_loss_that_is_no_number_is_no_reason_to_trust_the_refit() -> None:
    assert JudgedRefit(4.0, float("nan")).left_out
    assert not JudgedRefit(float("nan"), 4.0).left_out
    assert not JudgedRefit(4.0, 4.0).left_out
