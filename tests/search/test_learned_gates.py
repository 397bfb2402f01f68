"""Learned gates: what they minimise is the divergence itself, they mend a bad plan, and never end above the search's."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import adapruner
from adapruner.errors import ConfigurationError, DataError
from adapruner.pruning.budget import Budget
from adapruner.pruning.masking import masked
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.search import learned_gates
from adapruner.search.gates_config import GatesConfig
from adapruner.search.learned_gates import LearnedGates, learn_gates
from tests.ranks import on_two_ranks
from tests.tiny import VOCABULARY, prepare_problem, random_windows, tiny_llama

WINDOWS, HELD_OUT = random_windows(12, 16, seed=3), random_windows(4, 16, seed=4)
RANDOM = Recipe({"random": 1.0})  # the worst plan that is any
CONFIG = GatesConfig(steps=12, learning_rate=0.1, batch_size=4, look_every=4, top_k=VOCABULARY - 1)


def learned(
    config: GatesConfig = CONFIG, folder: Path | None = None, recipe: Recipe = RANDOM
) -> tuple[LearnedGates, PruningPlan, Any, PruningProblem]:
    model = tiny_llama()
    problem = prepare_problem(model, WINDOWS, Budget(0.4, keep_at_least=0.1))
    plan = make_plan(problem, recipe)
    return learn_gates(model, problem, plan, recipe, WINDOWS, HELD_OUT, config, folder, {"of": "a test"}), plan, model, problem


def whole_divergence(model: Any, problem: PruningProblem, plan: PruningPlan) -> float:
    """KL of the masked model from the dense one over the whole vocabulary, mean over predicted tokens."""
    with torch.no_grad():
        dense = model(HELD_OUT.input_ids).logits.log_softmax(-1)[:, :-1]
        with masked(model, problem.structure, plan):
            cut = model(HELD_OUT.input_ids).logits.log_softmax(-1)[:, :-1]
    return float((dense.exp() * (dense - cut)).sum(-1).mean())


def test_a_bad_plan_is_mended_and_every_look_is_the_divergence_itself() -> None:
    found, plan, model, problem = learned()
    assert [look.step for look in found.looks] == [0, 4, 8, 12]
    assert found.looks[0].held_out == pytest.approx(whole_divergence(model, problem, plan), rel=1e-4)
    assert found.best.held_out == pytest.approx(whole_divergence(model, problem, found.plan), rel=1e-4)
    assert found.best.held_out < 0.96 * found.looks[0].held_out
    assert found.best.exchanged == sum(len(set(found.plan.kept[name]) - set(units)) for name, units in plan.kept.items()) > 0
    assert abs(found.plan.pruned_fraction - 0.4) < 0.01
    assert found.plan.recipe == plan.recipe
    assert found.plan.provenance["gates"]["started from"] == plan.hash


def with_uncounted(windows: Any, rows: list[int]) -> Any:
    found = replace(windows, labels=windows.labels.clone())
    found.labels[rows] = -100
    found.labels[-1, 3:] = -100  # and one of few tokens, which count as few
    return found


def test_tokens_count_alike_in_whatever_batches() -> None:
    """Rows without a token to predict say nothing, and the others count by their tokens: the loss of the text, whole."""
    model = tiny_llama()
    problem = prepare_problem(model, WINDOWS, Budget(0.4, keep_at_least=0.1))
    plan, held = make_plan(problem, RANDOM), with_uncounted(HELD_OUT, [0, 1, 2])
    with torch.no_grad(), masked(model, problem.structure, plan):
        expected = float(model(held.input_ids, labels=held.labels).loss)
    training = with_uncounted(WINDOWS, [0, 5])
    values = []
    for size in (1, 3, 4):
        config = replace(CONFIG, divergence=0.0, batch_size=size, steps=3, look_every=3)
        found = learn_gates(model, problem, plan, RANDOM, training, held, config)
        values += [found.looks[0].held_out]
        assert all(torch.isfinite(torch.tensor(look.held_out)) for look in found.looks)
    assert values == pytest.approx([expected] * 3, rel=1e-5)


def test_held_out_text_that_predicts_nothing_is_refused() -> None:
    model = tiny_llama()
    problem = prepare_problem(model, WINDOWS, Budget(0.4, keep_at_least=0.1))
    nothing = replace(HELD_OUT, labels=torch.full_like(HELD_OUT.labels, -100))
    with pytest.raises(DataError, match=r"gates: expected a finite loss on the 0 held-out tokens after 0 steps"):
        learn_gates(model, problem, make_plan(problem, RANDOM), RANDOM, WINDOWS, nothing, replace(CONFIG, divergence=0.0))


def test_the_cross_entropy_alone_needs_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_gates, "write_down", lambda *_: pytest.fail("no teacher is asked for"))
    found, plan, model, problem = learned(replace(CONFIG, divergence=0.0))
    with torch.no_grad(), masked(model, problem.structure, plan):
        expected = float(model(HELD_OUT.input_ids, labels=HELD_OUT.labels).loss)
    assert found.looks[0].held_out == pytest.approx(expected, rel=1e-4)
    assert found.best.held_out < found.looks[0].held_out


def test_gates_that_make_it_worse_leave_the_plan_as_it_is() -> None:
    """So large a step throws every ranking over; the best look is the first."""
    good, plan, _, _ = learned(replace(CONFIG, learning_rate=50.0, steps=4), recipe=Recipe({"taylor_second": 1.0}))
    assert good.best.step == 0
    assert good.plan.kept == plan.kept
    assert good.plan.provenance["gates"]["best"]["step"] == 0  # it is told that they ran


def test_the_model_is_as_it_was() -> None:
    fresh = tiny_llama()
    _, _, model, _ = learned()
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    ids = WINDOWS.input_ids
    assert torch.equal(model(ids).logits, fresh(ids).logits)


def test_a_killed_run_goes_on_at_its_last_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, *_ = learned()
    step, done = learned_gates._Training._step, []

    def killed(self: Any, rows: list[int]) -> torch.Tensor:
        done.append(1)
        if len(done) == 7:  # two steps after the look at 4
            raise KeyboardInterrupt("killed")
        return step(self, rows)

    monkeypatch.setattr(learned_gates._Training, "_step", killed)
    with pytest.raises(KeyboardInterrupt, match="killed"):
        learned(folder=tmp_path)
    resumed, *_ = learned(folder=tmp_path)
    assert len(done) == 7 + 8
    assert resumed == whole
    assert (tmp_path / "gates.csv").read_text().splitlines()[0] == "step,loss,held_out,exchanged"
    assert len((tmp_path / "gates.csv").read_text().splitlines()) == 1 + 4
    other, *_ = learned(replace(CONFIG, seed=5), folder=tmp_path)  # another run's state is not this one's
    assert len(done) == 15 + 12
    assert other != whole


def on_rank(rank: int, steps: int) -> LearnedGates:
    return learned(replace(CONFIG, steps=steps, batch_size=3))[0]  # two windows for one rank, one for the other


@pytest.mark.slow  # two processes are started
def test_two_ranks_are_one(tmp_path: Path) -> None:
    first, second = on_two_ranks(on_rank, tmp_path, 4)
    alone, *_ = learned(replace(CONFIG, steps=4, batch_size=3))
    assert first == second
    assert first.plan.kept == alone.plan.kept
    assert [look.held_out for look in first.looks] == pytest.approx([look.held_out for look in alone.looks], rel=1e-4)


def test_gates_stand_between_search_and_surgery(tmp_path: Path) -> None:
    model = tiny_llama()
    dense = copy.deepcopy(model)
    gates = GatesConfig(steps=2, batch_size=4, look_every=1, learning_rate=0.2, top_k=VOCABULARY - 1)
    texts = random_windows(12, 16, seed=9)
    result = adapruner.prune(model, calibration=texts, budget=0.4, recipe=RANDOM, gates=gates, folder=tmp_path / "run", progress=False)
    plain = adapruner.prune(copy.deepcopy(dense), calibration=texts, budget=0.4, recipe=RANDOM, folder=tmp_path / "plain", progress=False)
    assert result.plan.provenance["gates"]["steps"] == 2
    assert result.plan.kept != plain.plan.kept
    assert "gates" not in plain.plan.provenance
    assert not (tmp_path / "plain" / "gates.csv").exists()
    assert (tmp_path / "run" / "gates.csv").exists()
    gates, looks = result.report["model"]["gates"], (tmp_path / "run" / "gates.csv").read_text().splitlines()
    assert (gates["first"], gates["steps"]) == (pytest.approx(float(looks[1].split(",")[2]), abs=1e-6), 2)
    assert gates["best"] == pytest.approx(min(float(look.split(",")[2]) for look in looks[1:]), abs=1e-6)
    assert adapruner.pruning.plan.read_plan(tmp_path / "run" / "plan.json").hash == result.plan.hash


def test_a_given_plan_keeps_its_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, gates = random_windows(12, 16, seed=9), GatesConfig(steps=2, batch_size=4)
    plain = adapruner.prune(tiny_llama(), calibration=texts, budget=0.4, recipe=RANDOM, progress=False)
    again = adapruner.prune(tiny_llama(), calibration=texts, plan=plain.plan, budget=0.4, gates=gates)
    assert again.plan.kept == plain.plan.kept
    assert "gates: a given plan keeps its units, none is exchanged" in " ".join(capsys.readouterr().out.split())


def test_what_gates_cannot_do_is_refused() -> None:
    for wrong, message in (
        ({"steps": -1}, r"gates\.steps: expected 0 or more, got -1"),
        ({"learning_rate": 0.0}, r"gates\.learning_rate: expected a positive number, got 0\.0"),
        ({"look_every": 0}, r"gates\.look_every: expected 1 or more, got 0"),
        ({"divergence": 1.5}, r"gates\.divergence: expected a number in \[0, 1\], got 1\.5"),
        ({"top_k": 0}, r"gates\.top_k: expected 1 or more, got 0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            GatesConfig(**wrong)
