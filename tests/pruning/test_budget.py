"""What a budget counts, protects and can reach."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.evaluation.cost import count_macs, weight_memory_gib
from adapruner.models.tracing import trace_structure
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs.latency_table import LatencyTable
from adapruner.pruning.costs.sizes import measure_sizes
from adapruner.pruning.surgery import prune_model
from tests.conftest import build_model
from tests.oracles.index_maps import block_parameters
from tests.oracles.surgery import random_plan

MODEL = build_model("llama_gqa_2")
STRUCTURE = trace_structure(MODEL)
SIZES = measure_sizes(MODEL, STRUCTURE)
TABLE = LatencyTable({"attention": 0.5, "ffn": 0.25}, whole_ms=30.0, seq_len=128, batch_size=1, device="none")


@pytest.mark.parametrize(("of", "whole"), [("block", block_parameters(MODEL.config)), ("all", MODEL.num_parameters())])
def test_target_is_a_fraction_of_what_is_counted(of: Any, whole: int) -> None:
    for fraction in (0.0, 0.1, 0.33):
        assert Budget(fraction, of).costs(STRUCTURE).remove == round(fraction * whole)


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
    reachable = 2 * (1 * STRUCTURE.group(0, "attention").parameters_per_unit + 18 * STRUCTURE.group(0, "ffn").parameters_per_unit)
    fraction = reachable / STRUCTURE.block_parameters
    assert Budget(fraction, protect_last=1, keep_at_least=0.25).costs(STRUCTURE).remove == reachable
    most = f"{math.floor(fraction * 1e4) / 1e4:.4f}"
    with pytest.raises(
        BudgetError, match=rf"most {most} of block .* and protection, got 0\.99; give {most} or less, protect fewer .*, or lower"
    ):
        budget.costs(STRUCTURE)


def test_protecting_every_layer_leaves_nothing_to_prune() -> None:
    budget = Budget(0.01, protect_first=3)
    assert Budget(0.0, protect_first=3).costs(STRUCTURE).remove == 0
    with pytest.raises(BudgetError, match=r"expected one of the model.s 3 layers to prune, got 3 and 0 protected"):
        budget.costs(STRUCTURE)


def test_a_plan_records_what_was_asked() -> None:
    assert Budget(0.3, "all", protect_first=1).to_dict() == {"pruned_fraction": 0.3, "of": "all"}
    assert Budget(0.3, "macs", seq_len=64).to_dict() == {"pruned_fraction": 0.3, "of": "macs", "seq_len": 64}


@pytest.mark.parametrize("seq_len", [8, 33])
def test_macs_of_a_plan_are_those_of_the_pruned_model(family: str, seq_len: int) -> None:
    model = build_model(family)
    structure = trace_structure(model)
    costs = Budget(0.1, "macs", seq_len=seq_len).costs(structure, sizes=measure_sizes(model, structure))
    assert costs.whole * seq_len == count_macs(model, seq_len)
    plan = random_plan(structure, seed=5)
    prune_model(model, structure, plan)
    assert costs.left_by(plan.kept, structure) * seq_len == count_macs(model, seq_len)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_a_plan_is_that_of_the_pruned_model(family: str, tied: bool, dtype: torch.dtype) -> None:
    model = build_model(family, tie_word_embeddings=tied).to(dtype)
    structure = trace_structure(model)
    costs = Budget(0.1, "memory").costs(structure, sizes=measure_sizes(model, structure))
    assert costs.whole == weight_memory_gib(model)
    plan = random_plan(structure, seed=6)
    prune_model(model, structure, plan)
    assert costs.left_by(plan.kept, structure) == pytest.approx(weight_memory_gib(model), rel=1e-12)


def test_latency_is_a_line() -> None:
    costs = Budget(0.25, "latency").costs(STRUCTURE, latency=TABLE)
    assert (costs.whole, costs.remove, costs.dense) == (30.0, 7.5, 30.0)
    kept = {g.name: list(range(g.units - 1)) for g in STRUCTURE.groups}
    assert costs.left_by(kept, STRUCTURE) == TABLE.predict(kept, STRUCTURE) == 30.0 - 3 * 0.75


def test_absolute_targets_are_what_is_left() -> None:
    parameters = MODEL.num_parameters()
    for of, whole in (("block", STRUCTURE.block_parameters), ("all", parameters)):
        budget = Budget(of=of, parameters_left=parameters - 3000)
        assert budget.costs(STRUCTURE).remove == 3000
        assert budget.costs(STRUCTURE).fraction == 3000 / whole
    macs = Budget(0.5, "macs").costs(STRUCTURE, sizes=SIZES)
    assert Budget(macs_left=macs.whole - 777).costs(STRUCTURE, sizes=SIZES).remove == 777
    memory = Budget(weight_memory_gib=0.8 * weight_memory_gib(MODEL)).costs(STRUCTURE, sizes=SIZES)
    assert memory.fraction == pytest.approx(0.2)
    assert Budget(latency_ms=24.0).costs(STRUCTURE, latency=TABLE).remove == 6.0


@pytest.mark.parametrize(
    ("target", "of"),
    [
        ({"parameters_left": 9}, "block"),
        ({"macs_left": 9.0}, "macs"),
        ({"weight_memory_gib": 9.0}, "memory"),
        ({"latency_ms": 9.0}, "latency"),
    ],
)
def test_an_absolute_target_says_what_is_counted(target: dict[str, Any], of: str) -> None:
    budget = Budget(**target)
    assert budget.of == of
    assert budget.absolute == next(iter(target))
    assert Budget(of=of, **target) == budget


def test_the_record_of_an_absolute_target_has_its_fraction() -> None:
    budget = Budget(0.2, latency_ms=24.0)
    record = budget.to_dict(budget.costs(STRUCTURE, latency=TABLE))
    assert record == {"pruned_fraction": 0.2, "of": "latency", "latency_ms": 24.0, "seq_len": 128}
    left = MODEL.num_parameters() - STRUCTURE.block_parameters // 4
    budget = Budget(parameters_left=left)
    assert budget.to_dict(budget.costs(STRUCTURE)) == {"pruned_fraction": pytest.approx(0.25), "of": "block", "parameters_left": left}
    with pytest.raises(ConfigurationError, match=r"costs: expected those of the model to record budget\.parameters_left, got none"):
        budget.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameters_left": 5, "macs_left": 5.0}, r"budget: expected at most one absolute target, got parameters_left and macs_left"),
        ({"parameters_left": 0}, r"budget\.parameters_left: expected a positive number, got 0"),
        ({"latency_ms": math.nan}, r"budget\.latency_ms: expected a positive number, got nan"),
        ({"weight_memory_gib": math.inf}, r"budget\.weight_memory_gib: expected a positive number, got inf"),
        ({"macs_left": 5.0, "of": "all"}, r"budget\.of: expected 'macs' with macs_left, got 'all'"),
        ({"parameters_left": 5, "of": "memory"}, r"budget\.of: expected 'block' with parameters_left, got 'memory'"),
        ({"seq_len": 0}, r"budget\.seq_len: expected a number of tokens, 1 or more, got 0"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Budget(**arguments)


def test_what_is_needed_to_count_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="sizes: expected the dense model's for a budget of macs, got none"):
        Budget(0.2, "macs").costs(STRUCTURE)
    with pytest.raises(ConfigurationError, match="sizes: expected the dense model's for a budget of memory, got none"):
        Budget(0.2, "memory").costs(STRUCTURE, latency=TABLE)
    with pytest.raises(ConfigurationError, match="latency: expected a measured table for a budget of latency, got none"):
        Budget(0.2, "latency").costs(STRUCTURE, sizes=SIZES)
    with pytest.raises(ConfigurationError, match=r"budget\.seq_len: expected the latency table's 128, got 64"):
        Budget(0.2, "latency", seq_len=64).costs(STRUCTURE, latency=TABLE)
    with pytest.raises(ConfigurationError, match="latency: expected ms per unit of ffn, got none"):
        Budget(0.2, "latency").costs(STRUCTURE, latency=LatencyTable({"attention": 1.0}, 9.0, 128, 1, "none"))


def test_unreachable_absolute_targets_say_the_range() -> None:
    with pytest.raises(
        BudgetError, match=r"latency_ms: expected a target from 11\.25 to 30 ms per forward .*, got 11; give one in between"
    ):
        Budget(latency_ms=11, keep_at_least=0.0).costs(STRUCTURE, latency=TABLE)
    parameters = MODEL.num_parameters()
    with pytest.raises(
        BudgetError, match=rf"parameters_left: expected a target from \d+ to {parameters} parameters .*, got {parameters + 1};"
    ):
        Budget(parameters_left=parameters + 1).costs(STRUCTURE)
    assert Budget(parameters_left=parameters).costs(STRUCTURE).remove == 0
    with pytest.raises(BudgetError, match=r"pruned_fraction: expected at most 0\.6250 of ms per forward for this model, got"):
        Budget(0.7, "latency", keep_at_least=0.0).costs(STRUCTURE, latency=TABLE)
