"""The depth profile against its formula: shares by layer, clipped, with the target hit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapruner.errors import ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from tests.conftest import build_model
from tests.pruning.allocation.test_allocation import draw_scores, removed_parameters

STRUCTURE = trace_structure(build_model("llama", intermediate_size=256, num_hidden_layers=6))
CHANNEL = STRUCTURE.group(0, "ffn").parameters_per_unit
LAYER = STRUCTURE.block_parameters / 6


def leaning(slope: float, curve: float) -> Allocation:
    return Allocation("depth", depth_slope=slope, depth_curve=curve)


def removed_of_layer(kept: dict[str, list[int]], layer: int) -> float:
    return sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in STRUCTURE.groups if g.layer == layer) / LAYER


def test_profile_has_the_documented_values() -> None:
    assert [round(leaning(0.2, 0.0).profile_at(layer, 5), 6) for layer in range(5)] == [-0.2, -0.1, 0.0, 0.1, 0.2]
    assert [round(leaning(0.0, 0.3).profile_at(layer, 5), 6) for layer in range(5)] == [0.2, -0.025, -0.1, -0.025, 0.2]
    assert leaning(5.0, 0.3).profile_at(0, 1) == pytest.approx(-0.1)


@settings(max_examples=60, deadline=None)
@given(
    fraction=st.floats(0.05, 0.85),
    slope=st.floats(-0.6, 0.6),
    curve=st.floats(-0.6, 0.6),
    first=st.integers(0, 1),
    heads=st.sampled_from(["per_layer", "uniform"]),
)
def test_the_target_is_hit_within_half_a_channel(fraction: float, slope: float, curve: float, first: int, heads: Any) -> None:
    budget = Budget(fraction * (6 - first) / 6, protect_first=first)
    kept = allocate(draw_scores(STRUCTURE), STRUCTURE, budget, Allocation("depth", heads=heads, depth_slope=slope, depth_curve=curve))
    assert abs(removed_parameters(kept, STRUCTURE) - budget.costs(STRUCTURE).remove) <= CHANNEL / 2
    assert all(len(kept[g.name]) >= budget.smallest_width(g.units) for g in STRUCTURE.groups)
    assert all(len(kept[g.name]) == g.units for g in STRUCTURE.groups if g.layer < first)
    if heads == "uniform":
        assert len({len(kept[g.name]) for g in STRUCTURE.groups if g.kind == "attention" and g.layer >= first}) == 1


@settings(max_examples=40, deadline=None)
@given(fraction=st.floats(0.2, 0.6), slope=st.floats(-0.15, 0.15), curve=st.floats(-0.15, 0.15))
def test_unclipped_layers_lose_their_share(fraction: float, slope: float, curve: float) -> None:
    """With nothing clipped the base has a closed form: the fraction less the profile's mean."""
    values = [leaning(slope, curve).profile_at(layer, 6) for layer in range(6)]
    base = fraction - sum(values) / 6
    assume(all(0.15 < base + value < 0.7 for value in values))
    kept = allocate(draw_scores(STRUCTURE), STRUCTURE, Budget(fraction), Allocation("depth", depth_slope=slope, depth_curve=curve))
    for layer, value in enumerate(values):
        assert abs(removed_of_layer(kept, layer) - (base + value)) <= 1.01 * CHANNEL / LAYER


def test_shares_are_clipped_at_both_ends() -> None:
    kept = allocate(draw_scores(STRUCTURE), STRUCTURE, Budget(0.5, keep_at_least=0.25), Allocation("depth", depth_slope=4.0))
    shares = [removed_of_layer(kept, layer) for layer in range(6)]
    assert shares[:2] == [0.0, 0.0]
    assert shares[4:] == [0.75, 0.75]
    assert sum(shares) == pytest.approx(3.0, abs=CHANNEL / LAYER)


def test_scores_decide_within_a_layer_only() -> None:
    scores = draw_scores(STRUCTURE)
    louder = {name: values * 10.0 ** int(name[0]) for name, values in scores.items()}
    allocation = Allocation("depth", depth_slope=0.2)
    kept = allocate(scores, STRUCTURE, Budget(0.4), allocation)
    assert kept == allocate(louder, STRUCTURE, Budget(0.4), allocation)
    for g in STRUCTURE.groups:
        assert kept[g.name] == sorted(torch.argsort(scores[g.name])[g.units - len(kept[g.name]) :].tolist())


@pytest.mark.parametrize("round_to", [8, 64])
def test_rounded_widths(round_to: int) -> None:
    budget, allocation = Budget(0.4), Allocation("depth", depth_slope=0.2, round_to=round_to)
    kept = allocate(draw_scores(STRUCTURE), STRUCTURE, budget, allocation)
    assert all(len(kept[f"{layer}.ffn"]) % round_to == 0 for layer in range(6))
    assert abs(removed_parameters(kept, STRUCTURE) - budget.costs(STRUCTURE).remove) <= round_to * CHANNEL / 2
    assert removed_of_layer(kept, 0) < removed_of_layer(kept, 5)


def test_gamma_leans_the_same_way() -> None:
    scores = {g.name: torch.rand(g.units, generator=torch.Generator().manual_seed(g.layer)) for g in STRUCTURE.groups}

    def widths(**profile: float) -> list[int]:
        kept = allocate(scores, STRUCTURE, Budget(0.4), Allocation(**profile))  # type: ignore[arg-type]
        return [len(kept[f"{layer}.ffn"]) for layer in range(6)]

    late, early, ends = widths(depth_slope=1.0), widths(depth_slope=-1.0), widths(depth_curve=1.0)
    assert late == sorted(late, reverse=True)
    assert early == sorted(early)
    assert max(ends[0], ends[5]) < min(ends[2], ends[3])


def test_gamma_multiplies_a_layers_prices() -> None:
    scores = draw_scores(STRUCTURE)
    by_hand = {
        g.name: scores[g.name].double() * torch.exp(torch.tensor(-leaning(0.7, -0.4).profile_at(g.layer, 6)).double())
        for g in STRUCTURE.groups
    }
    found = allocate(scores, STRUCTURE, Budget(0.5), Allocation(depth_slope=0.7, depth_curve=-0.4))
    assert found == allocate(by_hand, STRUCTURE, Budget(0.5), Allocation())


def test_bad_profiles() -> None:
    with pytest.raises(ConfigurationError, match=r"allocation\.depth_slope: expected a number in \[-100, 100\], got nan"):
        Allocation("depth", depth_slope=float("nan"))
    with pytest.raises(ConfigurationError, match=r"allocation\.depth_curve: expected 0 with method 'uniform', got 0\.1"):
        Allocation("uniform", depth_curve=0.1)
