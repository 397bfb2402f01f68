"""Which units stay: against a slow greedy reference, and the properties every plan must have."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from tests.conftest import build_model

STRUCTURE = trace_structure(build_model("llama", intermediate_size=160))


def draw_scores(structure: ModelStructure, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.units, generator=generator) * 10 ** float(torch.randn(1, generator=generator)) for g in structure.groups}


def removed_parameters(kept: dict[str, list[int]], structure: ModelStructure) -> int:
    return sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in structure.groups)


def slow_greedy(
    scores: dict[str, torch.Tensor], structure: ModelStructure, budget: Budget, gamma: float, log_head: float
) -> dict[str, list[int]]:
    """One unit at a time: always the cheapest per parameter that still fits, written without tensors."""
    prices = []
    for g in structure.groups:
        total = sum(float(s) for s in scores[g.name])
        for unit, score in enumerate(scores[g.name].double().tolist()):
            price = score / g.parameters_per_unit / total**gamma * (math.exp(log_head) if g.kind == "attention" else 1.0)
            prices.append((price, len(prices), g, unit))
    left = round(structure.block_parameters * budget.pruned_fraction)
    kept = {g.name: list(range(g.units)) for g in structure.groups}
    for _, _, g, unit in sorted(prices, key=lambda row: row[:2]):
        if g.parameters_per_unit <= left and len(kept[g.name]) > budget.smallest_width(g.units):
            kept[g.name].remove(unit)
            left -= g.parameters_per_unit
    return kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "log_head"), [(0.0, 0.0), (0.4, 0.7), (1.0, -1.0)])
def test_global_ranking_equals_slow_greedy(seed: int, gamma: float, log_head: float) -> None:
    scores, budget = draw_scores(STRUCTURE, seed), Budget(0.45)
    kept = allocate(scores, STRUCTURE, budget, Allocation("gamma", gamma, log_head))
    assert kept == slow_greedy(scores, STRUCTURE, budget, gamma, log_head)


@settings(max_examples=40, deadline=None)
@given(fraction=st.floats(0.0, 0.8), seed=st.integers(0, 1000), gamma=st.floats(0, 1), of=st.sampled_from(["block", "all"]))
def test_budget_is_hit_within_a_channel(fraction: float, seed: int, gamma: float, of: Any) -> None:
    budget = Budget(fraction * (1.0 if of == "block" else 0.9), of)
    kept = allocate(draw_scores(STRUCTURE, seed), STRUCTURE, budget, Allocation("gamma", gamma))
    channel = STRUCTURE.group(0, "ffn").parameters_per_unit
    assert 0 <= budget.costs(STRUCTURE).remove - removed_parameters(kept, STRUCTURE) < channel
    assert all(units == sorted(set(units)) and units for units in kept.values())


def test_uniform_gives_every_layer_the_same_widths() -> None:
    kept = allocate(draw_scores(STRUCTURE), STRUCTURE, Budget(0.5), Allocation("uniform"))
    assert {len(kept[g.name]) for g in STRUCTURE.groups if g.kind == "attention"} == {2}
    assert len({len(kept[g.name]) for g in STRUCTURE.groups if g.kind == "ffn"}) == 1
    lowest = torch.argsort(draw_scores(STRUCTURE)["0.attention"])[:2].tolist()
    assert not set(lowest) & set(kept["0.attention"])


def test_ranking_per_unit_takes_the_lowest_scores_whatever_their_size() -> None:
    """No unit that goes has a higher score than one that stays, heads and channels alike, but for the last head that did not fit."""
    scores = {g.name: torch.rand(g.units, generator=torch.Generator().manual_seed(i)) for i, g in enumerate(STRUCTURE.groups)}
    kept = allocate(scores, STRUCTURE, Budget(0.4, keep_at_least=0.0), Allocation("gamma", per="unit"))
    ffn = [g for g in STRUCTURE.groups if g.kind == "ffn"]
    gone = [float(s) for g in ffn for u, s in enumerate(scores[g.name].tolist()) if u not in kept[g.name]]
    stays = [float(s) for g in ffn for u, s in enumerate(scores[g.name].tolist()) if u in kept[g.name] and len(kept[g.name]) > 1]
    assert max(gone) <= min(stays)
    heads = [float(scores[g.name][u]) for g in STRUCTURE.groups if g.kind == "attention" for u in range(g.units) if u not in kept[g.name]]
    assert not heads or max(heads) <= max(gone)
    assert kept != allocate(scores, STRUCTURE, Budget(0.4, keep_at_least=0.0), Allocation("gamma"))


def test_common_factor_changes_nothing() -> None:
    scores = draw_scores(STRUCTURE)
    scaled = {name: values * 7.0 for name, values in scores.items()}
    for allocation in (Allocation("gamma", 0.0), Allocation("gamma", 0.5), Allocation("uniform")):
        assert allocate(scores, STRUCTURE, Budget(0.3), allocation) == allocate(scaled, STRUCTURE, Budget(0.3), allocation)


def test_gamma_one_forgets_the_scale_of_a_layer() -> None:
    base = torch.rand(160, generator=torch.Generator().manual_seed(0))
    scores = {g.name: torch.full((g.units,), 1e6) if g.kind == "attention" else base * 100.0**g.layer for g in STRUCTURE.groups}
    flat = allocate(scores, STRUCTURE, Budget(0.3), Allocation("gamma", 1.0, 9.0))
    assert len({len(flat[f"{layer}.ffn"]) for layer in range(3)}) <= 2
    raw = allocate(scores, STRUCTURE, Budget(0.3), Allocation("gamma", 0.0, 9.0))
    assert len(raw["0.ffn"]) < len(raw["2.ffn"])


def test_protected_layers_and_smallest_widths() -> None:
    scores = {name: values * 1e-6 if name.startswith("1.") else values for name, values in draw_scores(STRUCTURE).items()}
    kept = allocate(scores, STRUCTURE, Budget(0.25, protect_first=1, protect_last=1, keep_at_least=0.1), Allocation())
    assert len(kept["0.ffn"]) == len(kept["2.ffn"]) == 160
    assert len(kept["0.attention"]) == len(kept["2.attention"]) == 4
    assert len(kept["1.ffn"]) >= 16
    assert len(kept["1.attention"]) >= 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=r"pruned_fraction: expected a number in \[0, 1\), got"):
        Budget(fraction)


def test_other_bad_budgets() -> None:
    with pytest.raises(ConfigurationError, match=r"budget\.of: expected a known unit of cost, got 'heads'"):
        Budget(0.2, "heads")
    with pytest.raises(ConfigurationError, match=r"budget\.protect_first: expected a number of layers, 0 or more, got -1"):
        Budget(0.2, protect_first=-1)
    with pytest.raises(ConfigurationError, match=r"keep_at_least: expected a number in \[0, 1\], got 2"):
        Budget(0.2, keep_at_least=2)


def test_unreachable_budget_says_what_is_reachable() -> None:
    budget = Budget(0.9, protect_first=2)
    reachable = sum((g.units - budget.smallest_width(g.units)) * g.parameters_per_unit for g in STRUCTURE.groups if g.layer == 2)
    with pytest.raises(BudgetError, match=f"expected at most {reachable / STRUCTURE.block_parameters:.4f} of block parameters"):
        allocate(draw_scores(STRUCTURE), STRUCTURE, budget, Allocation())


def test_coarse_uniform_widths_are_refused_not_missed() -> None:
    coarse = trace_structure(build_model("llama"))  # 24 channels a layer: steps of more than 1 %
    with pytest.raises(BudgetError, match=r"expected a plan within 0\.1% of 0\.11, got 0\.\d+ as the nearest"):
        allocate(draw_scores(coarse), coarse, Budget(0.11), Allocation("uniform"))


def test_scores_that_are_not_finite() -> None:
    scores = draw_scores(STRUCTURE)
    scores["1.ffn"][3] = math.nan
    with pytest.raises(ConfigurationError, match=r"expected 160 finite values for group 1\.ffn"):
        allocate(scores, STRUCTURE, Budget(0.2), Allocation())
    with pytest.raises(
        ConfigurationError, match=r"allocation\.method: expected a known allocation, got 'even'; Known: depth, gamma, uniform"
    ):
        Allocation("even")
