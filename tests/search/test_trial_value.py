"""What a trial is worth: against direct measurements of really pruned models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError
from adapruner.evaluation.cost import count_macs
from adapruner.evaluation.divergence import collect_top_k, evaluate_divergence_chunks
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.importance.gram import collect_grams
from adapruner.pruning.costs.sizes import measure_sizes
from adapruner.pruning.problem import PruningProblem, make_plan, part_weights
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import pruned
from adapruner.recovery import post_pruning
from adapruner.recovery.configuration import Ridge
from adapruner.recovery.local import pruned_and_refitted
from adapruner.search import trial_value
from adapruner.search.config import ObjectiveConfig, RerankConfig, SearchConfig
from adapruner.search.trial_value import Objective
from tests.tiny import random_windows, tiny_llama

RECIPE = Recipe({"l2": 1.0})


def last(objective: Objective, model: Any, problem: PruningProblem, recipe: Recipe = RECIPE) -> float:
    *_, part = objective.of_plan(model, make_plan(problem, recipe), recipe)
    return part.value


def test_chunks_add_up_to_the_whole(model: Any, problem: PruningProblem, windows: TextWindows) -> None:
    objective = Objective(model, problem, windows, SearchConfig(batch_size=2, chunks=4), None)
    parts = list(objective.of_plan(model, make_plan(problem, RECIPE), RECIPE))
    assert len(parts) == 4
    with pruned(model, problem.structure, make_plan(problem, RECIPE)):
        assert parts[-1].value == pytest.approx(evaluate_nll(model, windows).nll)
        assert [p.alone for p in parts] == pytest.approx([evaluate_nll(model, windows.select([i, i + 1])).nll for i in (0, 2, 4, 6)])


def test_kl_is_measured_against_the_dense_model(model: Any, problem: PruningProblem, windows: TextWindows) -> None:
    config = SearchConfig(objective=ObjectiveConfig(measure="kl", top_k=9))
    value = last(Objective(model, problem, windows, config, None), model, problem)
    dense = collect_top_k(model, windows, 9)
    with pruned(model, problem.structure, make_plan(problem, RECIPE)):
        *_, direct = evaluate_divergence_chunks(model, windows, dense)
    assert value == pytest.approx(direct.value, rel=1e-5)
    assert value > 0.01


def test_the_refit_is_looked_at(model: Any, problem: PruningProblem, windows: TextWindows) -> None:
    calibration = random_windows(4, 16, seed=1, sources=("books", "code", "wiki"))
    grams = collect_grams(model, problem.structure, calibration, calibration.source_index, 3)
    with_grams = replace(problem, grams=grams)
    plan = make_plan(problem, RECIPE)
    value = last(Objective(model, with_grams, windows, SearchConfig(), Ridge(0.02)), model, with_grams)
    with pruned_and_refitted(model, problem.structure, plan, grams, part_weights(problem, RECIPE), Ridge(0.02)):
        assert value == pytest.approx(evaluate_nll(model, windows).nll)
    own = replace(RECIPE, ridge=0.5)
    with pruned_and_refitted(model, problem.structure, plan, grams, part_weights(problem, own), Ridge(0.5)):
        direct = evaluate_nll(model, windows).nll
    assert last(Objective(model, with_grams, windows, SearchConfig(), Ridge(0.02)), model, with_grams, own) == pytest.approx(direct)
    with pytest.raises(ConfigurationError, match="refit: expected Gram matrices of the calibration pool, got none"):
        last(Objective(model, problem, windows, SearchConfig(), Ridge(0.02)), model, problem)


def test_a_large_model_has_the_same_value_with_its_layers_cut_in_turn(
    model: Any, problem: PruningProblem, windows: TextWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Objective(model, problem, windows, SearchConfig(batch_size=3), None)
    value = last(objective, model, problem)
    compensated = replace(RECIPE, bias_compensation=True)  # means are added before the cut: all at once, as ever
    with_bias = last(objective, model, problem, compensated)
    monkeypatch.setattr(post_pruning, "IN_TURN_ABOVE", 0)
    monkeypatch.setattr(post_pruning, "pruned_in_turn", Mock(wraps=post_pruning.pruned_in_turn))
    assert last(objective, model, problem) == value
    post_pruning.pruned_in_turn.assert_called_once()  # type: ignore[attr-defined]
    assert last(objective, model, problem, compensated) == with_bias
    post_pruning.pruned_in_turn.assert_called_once()  # type: ignore[attr-defined]


def test_what_a_trial_freed_is_given_back_also_where_it_was_stopped(
    model: Any, problem: PruningProblem, windows: TextWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = Mock()
    monkeypatch.setattr(trial_value, "give_back_freed_memory", given_back)
    objective = Objective(model, problem, windows, SearchConfig(batch_size=2, chunks=4), None)
    parts: Any = objective.of_plan(model, make_plan(problem, RECIPE), RECIPE)
    next(parts)
    given_back.assert_not_called()
    parts.close()
    given_back.assert_called_once()
    last(objective, model, problem)
    assert given_back.call_count == 2


def test_the_cost_term_is_the_fraction_left(model: Any, problem: PruningProblem, windows: TextWindows) -> None:
    plan = make_plan(problem, RECIPE)
    sized = replace(problem, sizes=measure_sizes(model, problem.structure), budget=replace(problem.budget, seq_len=16))
    plain = last(Objective(model, sized, windows, SearchConfig(), None), model, sized)
    for what, weight in (("macs", 2.0), ("parameters", 0.5)):
        objective: Any = ObjectiveConfig(cost=what, cost_weight=weight)  # type: ignore[arg-type]
        found = Objective(model, sized, windows, SearchConfig(objective=objective), None)
        if what == "macs":
            dense = count_macs(model, seq_len=16)
            with pruned(model, problem.structure, plan):
                left = count_macs(model, seq_len=16) / dense
        else:
            left = plan.parameters["pruned"] / plan.parameters["dense"]
        assert found.cost(plan) == pytest.approx(left, rel=1e-3)
        assert last(found, model, sized) == pytest.approx(plain + weight * left, rel=1e-4)


def test_a_value_that_is_no_number_names_sample_and_layer(problem: PruningProblem, windows: TextWindows) -> None:
    spoiled, plan = tiny_llama(), make_plan(problem, RECIPE)
    objective = Objective(spoiled, problem, windows, SearchConfig(), None)
    assert objective.locate_failure(spoiled, plan, RECIPE) == "on the search split"
    with torch.no_grad():
        spoiled.lm_head.weight[int(windows.input_ids[0, 1])] = float("nan")
    assert objective.locate_failure(spoiled, plan, RECIPE) == "on sample 0 of the search split, not finite from lm_head on"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "mse"}, "search.objective.measure: expected a known measure, got 'mse'"),
        ({"refit": "sometimes"}, "search.objective.refit: expected a known refit, got 'sometimes'"),
        ({"cost": "energy"}, "search.objective.cost: expected a known cost, got 'energy'"),
        ({"top_k": 0}, "search.objective.top_k: expected 1 or more, got 0"),
        ({"cost_weight": -1.0}, "search.objective.cost_weight: expected a finite number of 0 or more, got -1.0"),
        ({"pareto": True, "cost_weight": 1.0}, "search.objective: expected pareto or a cost_weight, got both"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ObjectiveConfig(**options)


def test_a_second_look_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"search\.rerank: expected candidates of 1 or more"):
        RerankConfig(candidates=0)
    with pytest.raises(ConfigurationError, match=r"search.rerank.keep: expected a fraction in \(0, 1\], got 0"):
        RerankConfig(keep=0.0)
    with pytest.raises(ConfigurationError, match=r"search\.objective\.pareto: expected the sampler tpe, gp or random .*, got cmaes"):
        SearchConfig(sampler="cmaes", objective=ObjectiveConfig(pareto=True))
