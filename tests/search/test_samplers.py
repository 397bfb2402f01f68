"""Every sampler, every rule for stopping, every order: resumed like unbroken, and doing what its name says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapruner.data.windows import TextWindows
from adapruner.pruning.problem import PruningProblem
from adapruner.search.config import ORDERS, ObjectiveConfig, SearchConfig
from adapruner.search.samplers import SAMPLERS
from adapruner.search.space import CALIBRATION_DIMENSIONS, SearchSpace, frozen_dimensions
from adapruner.search.stoppers import STOPPERS
from adapruner.search.study import run_search

CONFIG = SearchConfig(n_trials=14, batch_size=2, chunks=4, rerank=None, random_sets=0, space=SearchSpace(metrics=["l2", "gate_fisher"]))
FIXED = 6


class Killed(BaseException):
    """As a signal would: nothing catches it."""


def resumed_equals_unbroken(config: SearchConfig, model: Any, problem: PruningProblem, windows: TextWindows, folder: Path) -> Any:
    whole = run_search(model, problem, windows, config, folder / "whole", {})

    def kill(record: Any, best: Any) -> None:
        if record.trial == 10:
            raise Killed("killed")

    with pytest.raises(Killed, match=r"^killed$"):
        run_search(model, problem, windows, config, folder / "killed", {}, kill)
    again = run_search(model, problem, windows, config, folder / "killed", {})
    assert again.resumed == 11
    assert [t.params for t in again.trials] == [t.params for t in whole.trials]
    assert [t.state for t in again.trials] == [t.state for t in whole.trials]
    assert again.plan.hash == whole.plan.hash
    return whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(sampler: Any, model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    space = replace(CONFIG.space, reductions=["sum"])  # CMA-ES knows no choices
    whole = resumed_equals_unbroken(replace(CONFIG, sampler=sampler, space=space), model, problem, windows, tmp_path)
    assert len({tuple(t.params.values()) for t in whole.trials}) == CONFIG.n_trials


@pytest.mark.parametrize("rule", STOPPERS)
def test_stopping(rule: Any, model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    whole = resumed_equals_unbroken(replace(CONFIG, early_stopping=rule, sampler="random"), model, problem, windows, tmp_path)
    stopped = [t for t in whole.trials if t.state == "pruned"]
    assert bool(stopped) == (rule in ("median", "halving")) or rule == "wilcoxon"
    assert all(t.trial >= FIXED and t.value is not None for t in stopped)


@pytest.mark.parametrize("order", ORDERS)
def test_orders(order: Any, model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    whole = resumed_equals_unbroken(replace(CONFIG, order=order, sampler="random"), model, problem, windows, tmp_path)

    def searched_subspaces(trials: list[Any]) -> set[bool]:
        """Whether calibration dimensions (True) or others (False) differ between these trials."""
        names = trials[0].params
        return {n.startswith(CALIBRATION_DIMENSIONS) for n in names if len({t.params[n] for t in trials}) > 1}

    halves = [searched_subspaces(whole.trials[FIXED : FIXED + 4]), searched_subspaces(whole.trials[FIXED + 4 :])]
    assert halves == {"joint": [{True, False}] * 2, "data_first": [{True}, {False}], "metric_first": [{False}, {True}]}[order]


def test_frozen_dimensions() -> None:
    best = {"source/a": 1.0, "metric/l2": 0.5, "gamma": 0.1}
    assert frozen_dimensions("joint", True, best) is None
    assert frozen_dimensions("data_first", True, best) == {"metric/l2": 0.5, "gamma": 0.1}
    assert frozen_dimensions("data_first", False, best) == {"source/a": 1.0}
    assert frozen_dimensions("metric_first", True, best) == {"source/a": 1.0}


def test_two_objectives_give_a_front_with_plans(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    import json

    from adapruner.pruning.plan import read_plan

    space = replace(CONFIG.space, pruned_fraction=[0.1, 0.6])
    config = replace(CONFIG, space=space, objective=ObjectiveConfig(pareto=True))
    whole = resumed_equals_unbroken(config, model, problem, windows, tmp_path)
    complete = [t for t in whole.trials if t.state == "complete"]
    assert all(t.cost is not None and 0 < t.cost < 1 for t in complete)
    for trial in whole.front:  # nothing beats it in both
        assert not any(t.value < trial.value and t.cost <= trial.cost for t in complete)
        assert not any(t.value <= trial.value and t.cost < trial.cost for t in complete)
    for trial in complete:  # and everything else is beaten or equalled
        assert any(f.value <= trial.value and f.cost <= trial.cost for f in whole.front)
    rows = json.loads((tmp_path / "whole" / "pareto.json").read_text())
    assert [r["trial"] for r in rows] == [t.trial for t in whole.front]
    for row, trial in zip(rows, whole.front, strict=True):
        assert read_plan(tmp_path / "whole" / row["plan"]).hash == trial.plan_hash
    assert whole.plan.pruned_fraction >= problem.budget.pruned_fraction - 0.002
