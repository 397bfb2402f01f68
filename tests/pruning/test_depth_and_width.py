"""Layers and hidden channels with units in one plan: the budget is met as a whole, and the plan is about the dense model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adapruner.errors import BudgetError, ConfigurationError, ModelError
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure, count_parameters
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.before_pruning import trace_for_plan
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs.memory import GIB
from adapruner.pruning.costs.sizes import measure_sizes
from adapruner.pruning.depth_and_width import (
    DepthWidthConfig,
    DepthWidthCut,
    apply_depth_and_width,
    choose_depth_and_width,
    depth_and_width_removed,
    lift_plan,
    record_budget,
    remaining_budget,
    remaining_structure,
    restrict_plan,
)
from adapruner.pruning.hidden_width import hidden_scores
from adapruner.pruning.layer_scores.block_influence import BlockInfluence
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.surgery import prune_model
from tests.oracles.surgery import assert_same, plan_of, random_plan, snapshot

KEPT = tuple(range(0, 28))
LAYER_AND_HIDDEN = DepthWidthCut((1,), KEPT)


def wide(tiny_model: Any, **changes: Any) -> Any:
    return tiny_model("llama_gqa_2", intermediate_size=160, num_hidden_layers=4, **changes)


def allocated(model: Any, budget: Budget, cut: DepthWidthCut, dense: ModelStructure) -> PruningPlan:
    """What a search makes of the budget, with scores that are all the same."""
    sizes = measure_sizes(model, dense)
    with depth_and_width_removed(model, cut):
        within = trace_structure(model)
        rest = remaining_budget(budget, dense, within, sizes)
        costs = rest.costs(within, sizes=measure_sizes(model, within))
        kept = allocate({g.name: torch.ones(g.units) for g in within.groups}, within, rest, Allocation(), costs)
        plan = replace(plan_of(within, kept), budget=rest.to_dict(costs))
    return lift_plan(plan, dense, cut, {"name": "tiny", "fingerprint": "f00d"}, record_budget(budget, plan, dense, sizes))


@pytest.mark.parametrize("cut", [DepthWidthCut((1,)), DepthWidthCut((), KEPT), LAYER_AND_HIDDEN], ids=["layer", "hidden", "both"])
@pytest.mark.parametrize("of", ["block", "all"])
def test_a_fraction_counts_what_layers_and_channels_remove(tiny_model: Any, cut: DepthWidthCut, of: Any) -> None:
    """Counted on the model that is left, not from the plan."""
    model = wide(tiny_model)
    dense = trace_structure(model)
    plan = allocated(model, Budget(0.5, of, keep_at_least=0.1), cut, dense)
    assert plan.pruned_fraction == pytest.approx(0.5, abs=0.01)
    assert plan.budget == {"pruned_fraction": 0.5, "of": of}
    outside = count_parameters(model) - dense.block_parameters
    prune_model(model, dense, plan)
    assert count_parameters(model) == plan.parameters["pruned"]
    if of == "all":
        assert count_parameters(model) == pytest.approx(0.5 * dense.parameters, rel=0.02)
    elif cut.kept_hidden is None:  # the layer's two norms are outside of what a block budget counts
        assert count_parameters(model) - (outside - 2 * 32) == plan.parameters["block_pruned"]


@pytest.mark.parametrize("of", ["macs", "memory"])
def test_macs_and_memory_count_what_layers_and_channels_remove(tiny_model: Any, of: Any) -> None:
    model = wide(tiny_model)
    dense = trace_structure(model)
    plan = allocated(model, Budget(0.5, of, keep_at_least=0.1, seq_len=8), LAYER_AND_HIDDEN, dense)
    whole = Budget(0.0, of, seq_len=8).costs(dense, sizes=measure_sizes(model, dense)).whole
    prune_model(model, dense, plan)
    now = trace_structure(model) if plan.is_uniform() else None
    if of == "memory":
        assert sum(p.numel() * p.element_size() for p in model.parameters()) / GIB == pytest.approx(0.5 * whole, rel=0.02)
    else:
        products = 2 * 8 * sum(layer.self_attn.o_proj.in_features for layer in model.model.layers)
        linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
        assert products + linears == pytest.approx(0.5 * whole, rel=0.02)
    assert now is None or now.layers == 3
    assert plan.budget["pruned_fraction"] == 0.5


def test_absolute_targets_stay_as_they_are(tiny_model: Any) -> None:
    model = wide(tiny_model)
    dense = trace_structure(model)
    target = round(0.55 * dense.parameters)
    plan = allocated(model, Budget(parameters_left=target, keep_at_least=0.1), LAYER_AND_HIDDEN, dense)
    assert plan.budget["parameters_left"] == target
    assert plan.budget["pruned_fraction"] == pytest.approx((dense.parameters - target) / dense.block_parameters)
    prune_model(model, dense, plan)
    assert count_parameters(model) == pytest.approx(target, rel=0.01)


def test_budgets_that_do_not_fit_what_is_removed(tiny_model: Any) -> None:
    model = wide(tiny_model)
    dense, sizes = trace_structure(model), measure_sizes(model, trace_structure(model))
    with depth_and_width_removed(model, LAYER_AND_HIDDEN):
        within = trace_structure(model)
    with pytest.raises(
        BudgetError, match=r"budget\.pruned_fraction: expected at least the 0\.34\d\d that removed layers and hidden .*got 0\.1"
    ):
        remaining_budget(Budget(0.1), dense, within, sizes)
    with pytest.raises(ConfigurationError, match=r"budget\.of: expected latency_ms beside removed layers .*, got a fraction of latency"):
        remaining_budget(Budget(0.5, "latency"), dense, within, sizes)
    assert remaining_budget(Budget(latency_ms=3.0), dense, within, sizes) == Budget(latency_ms=3.0)
    exactly = 1 - within.block_parameters / dense.block_parameters
    assert remaining_budget(Budget(exactly), dense, within, sizes).pruned_fraction == pytest.approx(0.0, abs=1e-3)


def test_lifted_and_restricted_is_the_same_plan(tiny_model: Any, tmp_path: Any) -> None:
    model = wide(tiny_model)
    dense = trace_structure(model)
    with depth_and_width_removed(model, DepthWidthCut((0, 2), KEPT)):
        within = trace_structure(model)
    inner = random_plan(within, 1)
    plan = lift_plan(inner, dense, DepthWidthCut((0, 2), KEPT), {"fingerprint": "f00d"})
    assert [plan.widths("ffn")[i] for i in (0, 1, 2, 3)] == [0, inner.widths("ffn")[0], 0, inner.widths("ffn")[1]]
    assert (plan.parameters["dense"], plan.parameters["pruned"]) == (dense.parameters, inner.parameters["pruned"])
    back = restrict_plan(plan, within)
    assert (back.kept, back.units, back.parameters, back.cuts_depth_or_width) == (inner.kept, inner.units, inner.parameters, False)
    assert DepthWidthCut.of(plan) == DepthWidthCut((0, 2), KEPT)
    plan.save(tmp_path / "plan.json")
    read = read_plan(tmp_path / "plan.json")
    assert read == plan
    prune_model(model, trace_for_plan(model, read), read)
    assert count_parameters(model) == read.parameters["pruned"]


@pytest.mark.parametrize("family", ["llama_gqa_4", "llama_biased", "qwen3", "qwen2"])
@pytest.mark.parametrize("units", ["kv_group", "query_head"])
def test_the_structure_within_is_what_a_trace_says(tiny_model: Any, family: str, units: Any) -> None:
    model = tiny_model(family, num_hidden_layers=12)
    dense, cut = trace_structure(model, units), DepthWidthCut((0, 3, 4), tuple(range(24)))
    with depth_and_width_removed(model, cut):
        traced = trace_structure(model, units)
    plan = lift_plan(random_plan(traced, 0) if units == "kv_group" else plan_of(traced, {}), dense, cut, {})
    found = remaining_structure(dense, plan)
    assert (found.layers, found.parameters, found.block_parameters) == (traced.layers, traced.parameters, traced.block_parameters)
    for one, other in zip(found.groups, traced.groups, strict=True):
        for name in ("layer", "kind", "units", "channels_per_unit", "parameters_per_unit", "sets", "head_dim", "key_value_heads"):
            assert getattr(one, name) == getattr(other, name)
        for members in ("members", "staying"):
            for a, b in zip(getattr(one, members), getattr(other, members), strict=True):
                assert (a.role, a.module, a.dim, a.index.tolist()) == (b.role, b.module, b.dim, b.index.tolist())
    prune_model(model, dense, plan)
    assert count_parameters(model) == plan.parameters["pruned"]


def test_choice_follows_what_is_left(tiny_model: Any, token_windows: Any) -> None:
    """The least influential free layer; then channels by what they carry without it, in a number that the heads divide."""
    model, windows = wide(tiny_model), token_windows()
    before = snapshot(model)
    cut = choose_depth_and_width(model, windows, DepthWidthConfig(1, 0.2), Budget(protect_first=1, protect_last=1), batch_size=2)
    influence = BlockInfluence().score(model, windows)
    layer = 1 if influence[1] <= influence[2] else 2
    assert cut.removed_layers == (layer,)
    apply_depth_and_width(twin := wide(tiny_model), DepthWidthCut((layer,)))
    best = torch.argsort(hidden_scores(twin, windows), descending=True)[:24]  # 25.6 would be left: 24 is a multiple of 4 heads
    assert cut.kept_hidden is not None
    assert set(cut.kept_hidden) == set(best.tolist())
    assert_same(before, snapshot(model))
    assert not choose_depth_and_width(model, windows, DepthWidthConfig(0, 0.01), Budget())
    with pytest.raises(ConfigurationError, match=r"remove_layers: expected at most 2 of 4 layers, 2 of them protected, got 3"):
        choose_depth_and_width(model, windows, DepthWidthConfig(3), Budget(protect_first=2))


def test_options() -> None:
    assert not DepthWidthConfig()
    assert not DepthWidthCut()
    assert DepthWidthConfig(1)
    assert DepthWidthConfig(0, 0.1)
    with pytest.raises(ConfigurationError, match=r"remove_layers: expected a number of layers, 0 or more, got -1"):
        DepthWidthConfig(-1)
    with pytest.raises(ConfigurationError, match=r"hidden_fraction: expected a fraction in \[0, 1\), got 1\.0"):
        DepthWidthConfig(0, 1.0)


def test_a_block_that_fails_restores_the_model(tiny_model: Any) -> None:
    model = wide(tiny_model)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="out of memory"), depth_and_width_removed(model, LAYER_AND_HIDDEN):
        raise RuntimeError("out of memory")
    assert_same(before, snapshot(model))
    model.config.mlp_only_layers = [0]
    before = snapshot(model)
    with pytest.raises(ModelError, match="do not depend on their place"):
        apply_depth_and_width(model, LAYER_AND_HIDDEN)
    assert_same(before, snapshot(model))  # hidden channels are not gone either
