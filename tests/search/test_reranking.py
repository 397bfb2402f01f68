"""The best few once more: chosen rightly, halved rightly, and not measured twice."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapruner.data.windows import TextWindows
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.post_pruning import PostPruning
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from adapruner.search.config import RerankConfig, SearchConfig
from adapruner.search.reranking import choose_candidates, rerank
from adapruner.search.space import SearchSpace
from adapruner.search.study import run_search
from adapruner.search.trials import TrialRecord
from tests.tiny import random_windows

CALIBRATION = random_windows(4, 16, seed=1, sources=("books", "code", "wiki"))
METRICS = ("l1", "gate_fisher", "wanda_sp", "random")


def record(trial: int, name: str, value: float, plan_hash: str, state: Any = "complete") -> TrialRecord:
    return TrialRecord(trial, name, state, value, 0.0, {}, plan_hash)


def test_candidates_are_distinct_and_hold_the_best_fixed() -> None:
    records = [
        record(0, "l2", 5.0, "f"),
        record(1, "l1", 6.0, "g"),
        record(2, "searched", 3.0, "a"),
        record(3, "searched", 3.0, "a"),
        record(4, "searched", 3.1, "b"),
        record(5, "searched", 3.2, "c"),
        record(6, "searched", 1.0, "d", "pruned"),
    ]
    assert [r.trial for r in choose_candidates(records, 3)] == [2, 4, 0]
    assert [r.trial for r in choose_candidates(records, 9)] == [2, 4, 5, 0, 1]
    assert [r.trial for r in choose_candidates(records[:2], 1)] == [0]


def plans_of(problem: PruningProblem) -> list[tuple[TrialRecord, Any]]:
    made = [make_plan(problem, Recipe({m: 1.0})) for m in METRICS]
    return [(record(i, m, 1.0 + i, p.hash), p) for i, (m, p) in enumerate(zip(METRICS, made, strict=True))]


def nudge(model: nn.Module) -> nn.Module:
    """A recovery that one can compute by hand."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.97)
    return model


@pytest.mark.parametrize("recover", [None, nudge])
def test_values_are_those_of_the_reconstructed_and_recovered_models(
    model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path, recover: Callable[[nn.Module], nn.Module] | None
) -> None:
    def measure(m: nn.Module) -> float:
        return evaluate_nll(m, windows).nll

    post_pruning = PostPruning.of_windows(CALIBRATION, ReconstructionConfig(), recover)
    plans = plans_of(problem)
    steps: list[tuple[int, int]] = []
    found = rerank(model, problem, plans, post_pruning, measure, RerankConfig(4, 0.5), tmp_path, {}, lambda d, t, n: steps.append((d, t)))
    direct = {}
    for trial, plan in plans:
        twin = copy.deepcopy(model)
        prune_and_reconstruct(twin, problem.structure, plan, CALIBRATION.input_ids, ReconstructionConfig())
        direct[trial.plan_hash] = (measure(twin), measure(nudge(twin)))
    for candidate in found:
        assert candidate.reconstructed == pytest.approx(direct[candidate.plan_hash][0], abs=1e-4)
        if candidate.recovered is not None:
            assert candidate.recovered == pytest.approx(direct[candidate.plan_hash][1], abs=1e-4)
    assert sum(c.recovered is not None for c in found) == (2 if recover else 0)
    stage = 1 if recover else 0
    alive = sorted(direct, key=lambda h: direct[h][0])[: 2 if recover else 4]
    assert found[0].plan_hash == min(alive, key=lambda h: direct[h][stage])
    assert steps[-1] == ((6, 6) if recover else (4, 4))
    for group in problem.structure.groups:  # and the model is whole
        assert model.get_submodule(group.output.module).weight.shape[1] == group.channels


def test_what_was_measured_is_not_measured_again(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    calls: list[int] = []

    def measure(m: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate_nll(m, windows).nll

    post_pruning, plans = PostPruning.of_windows(CALIBRATION, ReconstructionConfig(), None), plans_of(problem)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        rerank(model, problem, plans, post_pruning, measure, RerankConfig(4), tmp_path, {"model": "a"})
    assert len(json.loads((tmp_path / "reranking.json").read_text())["values"]["reconstructed"]) == 2
    calls[:] = [1] * 10
    first = rerank(model, problem, plans, post_pruning, measure, RerankConfig(4), tmp_path, {"model": "a"})
    assert len(calls) == 12  # two were known
    rerank(model, problem, plans, post_pruning, measure, RerankConfig(4), tmp_path, {"model": "b"})
    assert len(calls) == 16  # another question: all anew
    (tmp_path / "reranking.json").write_text("{torn")
    assert rerank(model, problem, plans, post_pruning, measure, RerankConfig(4), tmp_path, {"model": "a"}) == first


def test_the_search_takes_the_winner_of_the_second_look(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    config = SearchConfig(n_trials=14, chunks=2, random_sets=3, space=SearchSpace(metrics=["l1", "l2", "gate_fisher"]))
    post_pruning = PostPruning.of_windows(CALIBRATION, ReconstructionConfig(), None)
    outcome = run_search(model, problem, windows, config, tmp_path, {}, post_pruning=post_pruning)
    assert outcome.candidates[0].plan_hash == outcome.plan.hash == outcome.best.plan_hash
    assert outcome.candidates[0].reconstructed == min(c.reconstructed for c in outcome.candidates if c.reconstructed is not None)
    assert outcome.best_fixed is not None
    assert outcome.best_fixed[0].plan_hash in {c.plan_hash for c in outcome.candidates}
    plain = run_search(model, problem, windows, replace(config, rerank=None), tmp_path, {}, post_pruning=post_pruning)
    assert plain.candidates == []
    assert plain.best.value == min(t.value for t in plain.trials if t.state == "complete" and t.value is not None)
