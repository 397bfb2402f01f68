"""The five steps of docs/add-a-metric.md, with the very code that stands there."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.errors import ConfigurationError
from adapruner.importance.metrics import METRICS, register_metric
from adapruner.importance.metrics.interface import MetricInputs
from adapruner.importance.statistics import collect_statistics
from adapruner.models.tracing import trace_structure
from adapruner.pruning.budget import Budget
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.search.seed_trials import SeedTrials
from adapruner.search.space import SearchSpace
from tests.conftest import build_model, build_windows

PAGE = Path(__file__).parents[2] / "docs" / "add-a-metric.md"


@pytest.fixture
def metric(tmp_path: Path) -> Iterator[Any]:
    """Steps 1 and 2: the page's own class in a user's file, registered for one test."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "rms_input.py").write_text(re.sub(r"(?m)^   ", "", code.group(1)))
    runpy.run_path(str(tmp_path / "rms_input.py"))
    yield METRICS.find("rms_input")
    METRICS.remove("rms_input")


def test_documented_metric_scores_and_is_searched(metric: Any) -> None:
    model, windows = build_model("llama_gqa_2", intermediate_size=160), build_windows()
    structure = trace_structure(model)
    statistics = collect_statistics(model, structure, windows, needs=metric.needs)
    weights = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    group = structure.group(1, "ffn")
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(group.output.module).register_forward_pre_hook(lambda _, a: seen.append(a[0][0]))
    with torch.no_grad():
        model(windows.input_ids[1:2])
    handle.remove()
    oracle = seen[0].square().mean(0).sqrt()  # step 3
    torch.testing.assert_close(metric.score(MetricInputs(statistics, group, weights))[0], oracle)
    space = SearchSpace(metrics=["l2", "rms_input"])  # step 5
    pool = CalibrationPool(CalibrationGroups(("all",), torch.zeros(5, dtype=torch.long)))
    assert [name for name, _ in SeedTrials(space, pool).first] == ["l2", "rms_input"]
    problem = PruningProblem(structure, statistics, pool, Budget(0.4), "tiny", "f")
    recipe = space.recipe({"gamma": 0.0, "log_head_multiplier": 0.0, "metric/l2": -1.0, "metric/rms_input": 1.0})
    assert abs(make_plan(problem, recipe).pruned_fraction - 0.4) < 0.002


def test_names_and_needs_are_checked(metric: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected a new name, got 'rms_input', which is taken"):
        register_metric(type("Same", (), {"name": "rms_input", "needs": frozenset(), "score": metric.score})())
    stranger = type("Stranger", (), {"name": "stranger", "paper": "-", "needs": frozenset({"imput_sum"}), "score": metric.score})()
    with pytest.raises(ConfigurationError, match="got 'imput_sum'; did you mean 'input_sum'"):
        register_metric(stranger)
