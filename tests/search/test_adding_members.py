"""A sampler, a rule for stopping and an objective in a user's own file, named on the command line like the shipped ones."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.pruning.problem import PruningProblem
from adapruner.pruning.surgery import pruned
from adapruner.search.config import SearchConfig
from adapruner.search.objectives import OBJECTIVES
from adapruner.search.samplers import SAMPLERS
from adapruner.search.space import SearchSpace
from adapruner.search.stoppers import STOPPERS
from adapruner.search.study import run_search
from tests.search.test_samplers import resumed_equals_unbroken

OWN = """
import optuna

from adapruner.evaluation.perplexity import NLLResult, evaluate_nll_chunks
from adapruner.search.objectives import register_objective
from adapruner.search.samplers import register_sampler
from adapruner.search.stoppers import register_stopper


@register_sampler
class QuasiRandom:
    name, several_objectives = "quasi_random", False

    def make(self, seed, startup, objectives):
        return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)


@register_stopper
class Impatient:
    name, sees_chunks_alone = "impatient", False

    def make(self, startup):
        return optuna.pruners.ThresholdPruner(upper=0.0)


@register_objective
class TwiceTheLoss:
    name = "twice_nll"

    def prepare(self, dense, windows, options, batch_size):
        return 2.0

    def measure(self, model, windows, prepared, batch_size, chunks):
        for result in evaluate_nll_chunks(model, windows, batch_size, chunks):
            yield NLLResult(prepared * result.nll_sum, result.tokens)
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "own.py").write_text(OWN)
    runpy.run_path(str(tmp_path / "own.py"))
    yield
    SAMPLERS.remove("quasi_random")
    STOPPERS.remove("impatient")
    OBJECTIVES.remove("twice_nll")


def parsed(*arguments: str) -> SearchConfig:
    """As the command line makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--search", type=SearchConfig)
    made: SearchConfig = parser.instantiate_classes(parser.parse_args(list(arguments))).search
    return made


def test_a_search_with_own_members(own: None, model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    config = parsed(
        "--search.sampler=quasi_random",
        "--search.early_stopping=impatient",
        "--search.objective.measure=twice_nll",
        "--search.space.metrics=[l2, gate_fisher]",
        "--search.n_trials=14",
        "--search.random_sets=0",
        "--search.batch_size=2",
    )
    outcome = resumed_equals_unbroken(config, model, problem, windows, tmp_path)
    with pruned(model, problem.structure, outcome.plan):
        assert outcome.best.value == pytest.approx(2 * evaluate_nll(model, windows).nll)
    assert [t.state for t in outcome.trials] == ["complete"] * 6 + ["pruned"] * 8  # no searched trial is good enough for the rule


def test_without_the_file_they_are_not_known() -> None:
    for option, kind in (("sampler", "sampler"), ("early_stopping", "early_stopping"), ("objective.measure", "measure")):
        with pytest.raises(Exception, match=rf"search\.{option}: expected a known {kind}, got 'quasi_random'"):
            parsed(f"--search.{option}=quasi_random")


def test_a_sampler_says_whether_it_takes_two_objectives(own: None) -> None:
    with pytest.raises(ConfigurationError, match=r"search\.objective\.pareto: expected the sampler tpe, gp or random .* got quasi_random"):
        SearchConfig(sampler="quasi_random", objective=type(SearchConfig().objective)(pareto=True))


def test_without_a_folder_nothing_is_written(
    model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = SearchConfig(n_trials=8, random_sets=2, space=SearchSpace(metrics=["l2", "gate_fisher"]))
    kept = run_search(model, problem, windows, config, tmp_path / "run", {})
    before = sorted(tmp_path.rglob("*"))
    assert run_search(model, problem, windows, config, None, {}).plan.hash == kept.plan.hash
    assert sorted(tmp_path.rglob("*")) == before
