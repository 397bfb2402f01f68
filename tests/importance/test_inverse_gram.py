"""OBS scores against leaving each unit out and solving the least squares anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.errors import ModelError
from adapruner.importance.inverse_gram import DAMPING, score_units
from adapruner.importance.statistics import collect_statistics
from adapruner.models.tracing import trace_structure
from tests.conftest import build_model, build_windows
from tests.oracles.metrics import states_of


@pytest.mark.parametrize("family", ["llama", "llama_gqa_2", "llama_mqa"])
def test_score_is_the_error_that_the_best_refit_leaves(family: str) -> None:
    model, windows = build_model(family), build_windows(padded=True)
    structure = trace_structure(model)
    statistics = collect_statistics(model, structure, windows, needs=frozenset({"obs"}), batch_size=2)
    states = states_of(model, structure, windows)
    for group in structure.groups[2:4]:
        rows = torch.cat(states[group.name])
        rows = rows / len(rows) ** 0.5
        damping = DAMPING * rows.square().sum(0).mean()
        rows = torch.cat([rows, damping.sqrt() * torch.eye(group.channels, dtype=torch.float64)])
        weight = model.get_submodule(group.output.module).weight.detach().double()
        scores = statistics.weights["obs", group.output.module].view(group.units, -1).sum(1)
        for unit in range(0, group.units, 3):
            others = group.channels_of([u for u in range(group.units) if u != unit])
            refitted = torch.linalg.lstsq(rows[:, others], rows @ weight.T).solution
            error = float((rows[:, others] @ refitted - rows @ weight.T).square().sum())
            assert float(scores[unit]) == pytest.approx(error, rel=1e-3)


def test_one_layer_at_a_time_and_beside_a_backward_pass(monkeypatch: Any) -> None:
    model, windows = build_model("llama_gqa_2"), build_windows(padded=True)
    structure = trace_structure(model)
    whole = collect_statistics(model, structure, windows, batch_size=2).weights
    monkeypatch.setattr("adapruner.importance.layer_runs.ACCUMULATED_VALUES", 1)
    apart = collect_statistics(model, structure, windows, needs=frozenset({"obs"}), batch_size=5)
    assert not apart.member
    for group in structure.groups:
        key = "obs", group.output.module
        torch.testing.assert_close(apart.weights[key], whole[key], rtol=1e-4, atol=1e-8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("needs", "backwards"),
    [({"obs", "input_sum"}, 0), (set(), 0), ({"first", "obs"}, 3), ({"summed_first"}, 3)],
)
def test_backward_runs_only_where_it_is_needed(monkeypatch: Any, needs: set[str], backwards: int) -> None:
    model, calls = build_model("llama"), []
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    statistics = collect_statistics(model, trace_structure(model), build_windows(), needs=frozenset(needs), batch_size=2)
    assert len(calls) == backwards
    assert float(statistics.loss.min()) > 0


def test_a_gram_that_is_not_finite_is_refused() -> None:
    group = trace_structure(build_model("llama")).group(1, "ffn")
    with pytest.raises(ModelError, match=r"expected finite inputs, got inf or nan in group 1\.ffn; use bfloat16 or float32"):
        score_units(torch.ones(32, 24), torch.full((24, 24), float("nan")), group)
