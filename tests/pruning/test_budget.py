"""What a budget counts, protects and can reach."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapruner.anatomy.tracing import trace_anatomy
from adapruner.errors import BudgetError
from adapruner.pruning.budget import Budget
from tests.conftest import build_model
from tests.oracles.index_maps import block_parameters

MODEL = build_model("llama_gqa_2")
ANATOMY = trace_anatomy(MODEL)


@pytest.mark.parametrize(("of", "whole"), [("block", block_parameters(MODEL.config)), ("all", MODEL.num_parameters())])
def test_target_is_a_fraction_of_what_is_counted(of: Any, whole: int) -> None:
    for fraction in (0.0, 0.1, 0.33):
        assert Budget(fraction, of).parameters_to_remove(ANATOMY) == round(fraction * whole)


@settings(max_examples=200, deadline=None)
@given(units=st.integers(1, 20_000), percent=st.integers(0, 100))
def test_smallest_width_is_the_fraction_rounded_up(units: int, percent: int) -> None:
    """Whole numbers of percent, so that the oracle is exact."""
    width = Budget(keep_at_least=percent / 100).smallest_width(units)
    assert width == max(1, math.ceil(units * percent / 100 - 1e-6))
    assert 1 <= width <= units


@pytest.mark.parametrize(("first", "last", "protected"), [(0, 0, []), (1, 0, [0]), (1, 2, [0, 3, 4]), (0, 9, [0, 1, 2, 3, 4])])
def test_protected_layers(first: int, last: int, protected: list[int]) -> None:
    budget = Budget(protect_first=first, protect_last=last)
    assert [layer for layer in range(5) if budget.is_protected(layer, 5)] == protected


def test_the_reachable_fraction_is_reachable_and_no_more() -> None:
    budget = Budget(0.99, protect_last=1, keep_at_least=0.25)
    reachable = 2 * (1 * ANATOMY.group(0, "attention").parameters_per_unit + 18 * ANATOMY.group(0, "ffn").parameters_per_unit)
    fraction = reachable / ANATOMY.block_parameters
    assert Budget(fraction, protect_last=1, keep_at_least=0.25).parameters_to_remove(ANATOMY) == reachable
    with pytest.raises(BudgetError, match=rf"expected at most {fraction:.4f} of block parameters .*, got 0\.99; prune less, protect fewer"):
        budget.parameters_to_remove(ANATOMY)


def test_protecting_every_layer_leaves_nothing_to_prune() -> None:
    budget = Budget(0.01, protect_first=3)
    assert Budget(0.0, protect_first=3).parameters_to_remove(ANATOMY) == 0
    with pytest.raises(BudgetError, match=r"expected at most 0\.0000 of block parameters"):
        budget.parameters_to_remove(ANATOMY)


def test_a_plan_records_what_was_asked() -> None:
    assert Budget(0.3, "all", protect_first=1).to_dict() == {"pruned_fraction": 0.3, "of": "all"}
