"""The problem of a run: statistics of every length, clusters, weights of a given set, and files read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.calibration.choice import CalibrationChoice
from adapruner.data.run_data import RunData
from adapruner.errors import BudgetError
from adapruner.importance.gram import collect_grams
from adapruner.importance.statistics import collect_statistics
from adapruner.models.tracing import trace_structure
from adapruner.pruning.budget import Budget
from adapruner.pruning.problem import make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.search import prepare_problem
from adapruner.search.prepare_problem import ProblemBuilder
from tests.tiny import random_windows

SOURCES = ("books", "code", "wiki")
SHORT, LONG = random_windows(4, 16, seed=1, sources=SOURCES), random_windows(4, 24, seed=5, sources=SOURCES)
NEEDS = frozenset({"first", "second"})


def data(**extra: Any) -> RunData:
    return RunData(
        SHORT, SHORT, **{"calibration_windows_at": {16: SHORT, 24: LONG}, "calibration_fingerprint": "f", "clusters": 2, **extra}
    )


def builder(model: Any, folder: Path | None, budget: Budget = Budget(0.3), **extra: Any) -> ProblemBuilder:
    return ProblemBuilder(model, trace_structure(model), data(**extra), budget, "tiny", "f00d", folder)


def test_every_length_has_its_statistics(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(prepare_problem, "announce", said.append)
    made = builder(model, tmp_path)
    problem = made.build(made.pools(), NEEDS, [24], grams=True)
    direct = collect_statistics(model, problem.structure, LONG, needs=NEEDS)
    found, pool = problem.at_length(24)
    for key, values in direct.member.items():
        torch.testing.assert_close(found.member[key], values)
    assert problem.at_length(16)[0] is problem.at_length(None)[0]
    assert pool.clusters is not None
    assert pool.clusters.names == problem.calibration.clusters.names  # type: ignore[union-attr]
    grams = collect_grams(model, problem.structure, SHORT, SHORT.source_index, 3)
    assert problem.grams is not None
    torch.testing.assert_close(problem.grams.moments("1.ffn").gram, grams.moments("1.ffn").gram)
    choice = CalibrationChoice(cluster_weights={"cluster 0": 1.0, "cluster 1": 0.0}, seq_len=24)
    assert make_plan(problem, Recipe({"gate_fisher": 1.0}, choice)).hash != make_plan(problem, Recipe({"gate_fisher": 1.0})).hash
    assert said == []

    again = builder(model, tmp_path)
    second = again.build(again.pools(), NEEDS, [24], grams=True)
    assert [line.split(" of ")[0] for line in said] == ["takes the statistics", "takes the statistics", "takes the Gram matrices"]
    assert again.seconds == {"statistics": 0.0, "Gram matrices": 0.0}
    assert make_plan(second, Recipe({"gate_fisher": 1.0}, choice)).hash == make_plan(problem, Recipe({"gate_fisher": 1.0}, choice)).hash


def test_weights_of_a_given_set_are_where_all_choices_start(model: Any, tmp_path: Path) -> None:
    base = torch.linspace(0, 1, 12)
    made = builder(model, tmp_path, calibration_sample_weights=base, calibration_windows_at={16: SHORT}, clusters=0)
    problem = made.build(made.pools(), NEEDS, [], grams=False)
    torch.testing.assert_close(problem.calibration.sample_weights(), base / base.sum())
    assert problem.grams is None


def test_a_budget_out_of_reach_is_refused_before_anything_is_collected(model: Any, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget\.pruned_fraction: expected"):
        builder(model, tmp_path, Budget(0.99)).without_statistics()
    assert list(tmp_path.iterdir()) == []


def test_budgets_of_macs_and_memory_have_costs(model: Any, tmp_path: Path) -> None:
    for of in ("macs", "memory"):
        made = builder(model, tmp_path / of, Budget(0.15, of))
        (tmp_path / of).mkdir()
        problem = made.build(made.pools(), NEEDS, [], grams=False)
        plan = make_plan(problem, Recipe({"l2": 1.0}))
        assert problem.costs is not None
        assert problem.costs.removed_by(plan.kept, problem.structure) / problem.costs.whole == pytest.approx(0.15, abs=0.002)
        assert plan.budget["of"] == of


def test_without_a_folder_nothing_is_written(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = builder(model, None)
    made.build(made.pools(), NEEDS, [24], grams=True)
    assert list(tmp_path.iterdir()) == []
