"""Regular widths: the constraint holds, the budget holds, and the ranking is followed as far as both allow."""

from __future__ import annotations

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate, usual_multiple
from adapruner.pruning.budget import Budget
from tests.conftest import build_model
from tests.pruning.allocation.test_allocation import draw_scores, removed_parameters

STRUCTURE = trace_structure(build_model("llama", intermediate_size=512, num_hidden_layers=4))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0.2, 0.45])
def test_uniform_heads(seed: int, fraction: float) -> None:
    scores = draw_scores(STRUCTURE, seed)
    kept = allocate(scores, STRUCTURE, Budget(fraction), Allocation(gamma=0.3, heads="uniform", round_to=1))
    assert len({len(kept[g.name]) for g in STRUCTURE.groups if g.kind == "attention"}) == 1
    target = Budget(fraction).costs(STRUCTURE).remove
    assert abs(removed_parameters(kept, STRUCTURE) - target) <= STRUCTURE.group(0, "ffn").parameters_per_unit / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("round_to", [8, 64])
@pytest.mark.parametrize("heads", ["per_layer", "uniform"])
def test_rounded_widths_meet_the_budget_within_half_a_step(seed: int, round_to: int, heads: str) -> None:
    scores, budget = draw_scores(STRUCTURE, seed), Budget(0.4)
    kept = allocate(scores, STRUCTURE, budget, Allocation(gamma=0.5, heads=heads, round_to=round_to))  # type: ignore[arg-type]
    for group in (g for g in STRUCTURE.groups if g.kind == "ffn"):
        width = len(kept[group.name])
        assert width % round_to == 0
        assert width >= round_to
        best = torch.argsort(scores[group.name], descending=True)[:width].tolist()
        assert kept[group.name] == sorted(best)  # within a layer the ranking itself decides
    step = round_to * STRUCTURE.group(0, "ffn").parameters_per_unit
    assert abs(removed_parameters(kept, STRUCTURE) - budget.costs(STRUCTURE).remove) <= step / 2


def test_any_width_is_one_ranking_cut_off_at_the_budget() -> None:
    scores, budget = draw_scores(STRUCTURE), Budget(0.3)
    kept = allocate(scores, STRUCTURE, budget, Allocation(round_to=1))
    costs = budget.costs(STRUCTURE)
    per_cost = {g.name: scores[g.name] / costs.per_unit[g.name] for g in STRUCTURE.groups}
    lowest_kept = min(float(per_cost[g.name][kept[g.name]].min()) for g in STRUCTURE.groups if g.kind == "ffn")
    gone = {g.name: [u for u in range(g.units) if u not in set(kept[g.name])] for g in STRUCTURE.groups if g.kind == "ffn"}
    assert max(float(per_cost[name][units].max()) for name, units in gone.items() if units) <= lowest_kept


@pytest.mark.parametrize(("hidden", "ffn", "multiple"), [(32, 512, 16), (32, 480, 1), (576, 1536, 32), (1024, 3072, 32), (2048, 8192, 64)])
def test_the_usual_multiple_follows_the_width_of_the_model(hidden: int, ffn: int, multiple: int) -> None:
    model = build_model("llama", hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=1, vocab_size=32)
    assert usual_multiple(trace_structure(model)) == multiple


@pytest.mark.parametrize("method", ["gamma", "uniform"])
@pytest.mark.parametrize("percent", range(10, 90, 9))
def test_widths_are_regular_unless_asked_otherwise(method: str, percent: int) -> None:
    """The usual multiple or a half, a quarter of it, and never further from the budget than that multiple allows."""
    scores, budget = draw_scores(STRUCTURE, percent), Budget(percent / 100)
    kept = allocate(scores, STRUCTURE, budget, Allocation(method))
    missed = abs(removed_parameters(kept, STRUCTURE) - budget.costs(STRUCTURE).remove)
    assert missed <= max(budget.costs(STRUCTURE).slack, 0 if method == "uniform" else 8 * STRUCTURE.group(0, "ffn").parameters_per_unit)
    if method == "gamma":
        assert all(len(kept[g.name]) % 8 == 0 for g in STRUCTURE.groups if g.kind == "ffn")


@pytest.mark.parametrize("heads", ["per_layer", "uniform"])
@pytest.mark.parametrize("percent", range(10, 80, 7))
def test_heads_absorb_what_steps_cannot(percent: int, heads: str) -> None:
    """Steps of 64 channels are 3 % here and heads 0.5 %: any number of heads with the FFN steps that suit it best."""
    scores, budget = draw_scores(STRUCTURE, percent), Budget(percent / 100)
    kept = allocate(scores, STRUCTURE, budget, Allocation(gamma=0.5, heads=heads, round_to=64))  # type: ignore[arg-type]
    head, step = STRUCTURE.group(0, "attention").parameters_per_unit, 64 * STRUCTURE.group(0, "ffn").parameters_per_unit
    target, each = budget.costs(STRUCTURE).remove, 4 if heads == "uniform" else 1
    now = sum(g.units - len(kept[g.name]) for g in STRUCTURE.groups if g.kind == "attention")
    assert all(len(kept[g.name]) % 64 == 0 for g in STRUCTURE.groups if g.kind == "ffn")

    def miss(removed_heads: int) -> float:
        return min(abs(removed_heads * head + steps * step - target) for steps in range(29))

    got = abs(removed_parameters(kept, STRUCTURE) - target)
    near = [n for n in range(max(0, now - 2 * each), min(12, now + 2 * each) + 1, each)]
    assert got <= max(0.001 * STRUCTURE.block_parameters, min(miss(n) for n in near)) + 1


@pytest.mark.parametrize("heads", [6, 8, 11])
def test_heads_alone_go_where_the_ffn_is_at_its_limit(heads: int) -> None:
    head, channel = (STRUCTURE.group(0, kind).parameters_per_unit for kind in ("attention", "ffn"))
    fraction = (4 * 448 * channel + heads * head) / STRUCTURE.block_parameters
    allocation = Allocation(log_head_multiplier=20.0, round_to=64)  # the ranking itself would spare every head
    kept = allocate(draw_scores(STRUCTURE), STRUCTURE, Budget(fraction), allocation)
    assert [len(kept[f"{layer}.ffn"]) for layer in range(4)] == [64] * 4
    assert sum(4 - len(kept[f"{layer}.attention"]) for layer in range(4)) == heads


@pytest.mark.parametrize("percent", range(10, 80, 14))
def test_no_head_is_moved_where_steps_suffice(percent: int) -> None:
    """Half a step of 2 channels is less than 0.1 % here."""
    scores, budget = draw_scores(STRUCTURE), Budget(percent / 100)
    free, kept = (allocate(scores, STRUCTURE, budget, Allocation(gamma=0.5, round_to=step)) for step in (1, 2))
    assert all(kept[g.name] == free[g.name] for g in STRUCTURE.groups if g.kind == "attention")
    assert all(len(kept[g.name]) % 2 == 0 for g in STRUCTURE.groups if g.kind == "ffn")


@pytest.mark.parametrize("intermediate", [500, 520])
def test_a_dense_width_that_is_no_multiple(intermediate: int) -> None:
    """A layer keeps all of its channels or a multiple of 64 of them."""
    structure = trace_structure(build_model("llama", intermediate_size=intermediate, num_hidden_layers=4))
    for percent in range(0, 80, 8):
        kept = allocate(draw_scores(structure, percent), structure, Budget(percent / 100), Allocation(gamma=0.5, round_to=64))
        widths = [len(kept[g.name]) for g in structure.groups if g.kind == "ffn"]
        assert all(width % 64 == 0 or width == intermediate for width in widths)


def test_rounding_respects_the_smallest_width() -> None:
    scores, budget = draw_scores(STRUCTURE), Budget(0.45, keep_at_least=0.3)  # 154 of 512: 192 is the multiple above it
    kept = allocate(scores, STRUCTURE, budget, Allocation(round_to=64))
    assert min(len(kept[g.name]) for g in STRUCTURE.groups if g.kind == "ffn") == 192


def test_bad_values() -> None:
    with pytest.raises(ConfigurationError, match=r"allocation\.round_to: expected 1 or more, got 0"):
        Allocation(round_to=0)
    with pytest.raises(ConfigurationError, match=r"allocation\.heads: expected 'per_layer' or 'uniform', got 'same'"):
        Allocation(heads="same")  # type: ignore[arg-type]
