"""Uniform widths against every pair of counts there is."""

from __future__ import annotations

import itertools

import pytest

from adapruner.errors import BudgetError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import TOLERANCE
from tests.conftest import build_model
from tests.pruning.allocation.test_allocation import draw_scores, removed_parameters

STRUCTURE = trace_structure(build_model("llama", intermediate_size=160, num_attention_heads=8, num_key_value_heads=8))
SCORES = draw_scores(STRUCTURE)


def every_pair(budget: Budget, round_to: int) -> list[tuple[float, int, int]]:
    """Miss of the target as a fraction, heads and channels removed from each layer."""
    heads, channels, target = STRUCTURE.group(0, "attention"), STRUCTURE.group(0, "ffn"), budget.costs(STRUCTURE).remove
    most = heads.units - budget.smallest_width(heads.units), channels.units - budget.smallest_width(channels.units)
    pairs = []
    for h, c in itertools.product(range(most[0] + 1), range(most[1] + 1)):
        if (channels.units - c) % round_to == 0:
            miss = abs(3 * (h * heads.parameters_per_unit + c * channels.parameters_per_unit) - target)
            pairs.append((miss / STRUCTURE.block_parameters, h, c))
    return pairs


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("percent", range(5, 90, 4))
def test_a_pair_within_the_tolerance_is_found_where_there_is_one(percent: int, round_to: int) -> None:
    budget, allocation = Budget(percent / 100), Allocation("uniform", round_to=round_to)
    pairs = every_pair(budget, round_to)
    nearest = min(pairs)[0]
    if nearest > TOLERANCE:
        with pytest.raises(BudgetError, match=r"expected a plan within 0\.1% of") as caught:
            allocate(SCORES, STRUCTURE, budget, allocation)
        shown = float(str(caught.value).split("got ")[1].split()[0])
        assert abs(shown - percent / 100) == pytest.approx(nearest, abs=1e-4)
        return
    kept = allocate(SCORES, STRUCTURE, budget, allocation)
    h, c = 8 - len(kept["0.attention"]), 160 - len(kept["0.ffn"])
    assert all((len(kept[f"{i}.attention"]), len(kept[f"{i}.ffn"])) == (8 - h, 160 - c) for i in range(3))
    assert abs(removed_parameters(kept, STRUCTURE) / STRUCTURE.block_parameters - percent / 100) <= TOLERANCE + 1e-5
    first = min(round(8 * percent / 100), 7)
    hits = [abs(heads - first) for miss, heads, _ in pairs if miss <= TOLERANCE]
    assert abs(h - first) == min(hits)  # no pair that hits has heads nearer to the fraction


def test_both_outcomes_are_among_the_cases() -> None:
    nearest = [min(every_pair(Budget(percent / 100), round_to))[0] for percent in range(5, 90, 4) for round_to in (1, 8)]
    assert min(nearest) <= TOLERANCE < max(nearest)


def test_protection_holds() -> None:
    kept = allocate(SCORES, STRUCTURE, Budget(0.25, protect_first=1), Allocation("uniform"))
    assert (len(kept["0.attention"]), len(kept["0.ffn"])) == (8, 160)
    assert len(kept["1.ffn"]) == len(kept["2.ffn"]) < 160
