"""Regular widths: the constraint holds, the budget holds, and the ranking is followed as far as both allow."""

from __future__ import annotations

import pytest
import torch

from adapruner.anatomy.tracing import trace_anatomy
from adapruner.errors import ConfigurationError
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from tests.conftest import build_model
from tests.pruning.test_allocation import draw_scores, removed_parameters

ANATOMY = trace_anatomy(build_model("llama", intermediate_size=512, num_hidden_layers=4))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0.2, 0.45])
def test_uniform_heads(seed: int, fraction: float) -> None:
    scores = draw_scores(ANATOMY, seed)
    kept = allocate(scores, ANATOMY, Budget(fraction), Allocation(gamma=0.3, heads="uniform"))
    assert len({len(kept[g.name]) for g in ANATOMY.groups if g.kind == "attention"}) == 1
    target = Budget(fraction).parameters_to_remove(ANATOMY)
    assert abs(removed_parameters(kept, ANATOMY) - target) <= ANATOMY.group(0, "ffn").parameters_per_unit / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("round_to", [8, 64])
@pytest.mark.parametrize("heads", ["per_layer", "uniform"])
def test_rounded_widths_meet_the_budget_within_half_a_step(seed: int, round_to: int, heads: str) -> None:
    scores, budget = draw_scores(ANATOMY, seed), Budget(0.4)
    kept = allocate(scores, ANATOMY, budget, Allocation(gamma=0.5, heads=heads, round_to=round_to))  # type: ignore[arg-type]
    for group in (g for g in ANATOMY.groups if g.kind == "ffn"):
        width = len(kept[group.name])
        assert width % round_to == 0
        assert width >= round_to
        best = torch.argsort(scores[group.name], descending=True)[:width].tolist()
        assert kept[group.name] == sorted(best)  # within a layer the ranking itself decides
    step = round_to * ANATOMY.group(0, "ffn").parameters_per_unit
    assert abs(removed_parameters(kept, ANATOMY) - budget.parameters_to_remove(ANATOMY)) <= step / 2


def test_step_of_one_channel_changes_nothing_that_is_regular_already() -> None:
    scores = draw_scores(ANATOMY)
    assert allocate(scores, ANATOMY, Budget(0.3), Allocation(round_to=1)) == allocate(scores, ANATOMY, Budget(0.3), Allocation())


def test_bad_values() -> None:
    with pytest.raises(ConfigurationError, match=r"allocation\.round_to: expected 1 or more, got 0"):
        Allocation(round_to=0)
    with pytest.raises(ConfigurationError, match=r"allocation\.heads: expected 'per_layer' or 'uniform', got 'same'"):
        Allocation(heads="same")  # type: ignore[arg-type]
