"""Mixtures of experts: the wide form against the stock class and a slow loop, channels and whole experts cut, stacked again."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError, ModelError, PlanError
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.importance.statistics import collect_statistics
from adapruner.models.families import family_of
from adapruner.models.families.wide_experts import LinearRouter, WideExperts
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.pruning.before_pruning import trace_for_plan
from adapruner.pruning.budget import Budget
from adapruner.pruning.masking import masked
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import prune_model, pruned
from adapruner.recovery.lora import LoRAConfig, attach_lora
from tests.models.families import conformance
from tests.models.families.conformance import logits, token_ids
from tests.models.families.table import Row, build

EXPERTS, CHOSEN = 4, 2
_COUNTS = {"num_key_value_heads": 2, "num_experts_per_tok": CHOSEN}
_QWEN = {**_COUNTS, "num_experts": EXPERTS, "moe_intermediate_size": 12}
ROWS = (
    Row("Mixtral", "mixtral", {**_COUNTS, "num_local_experts": EXPERTS}),
    Row("Qwen3-MoE", "qwen3_moe", {**_QWEN, "head_dim": 8, "norm_topk_prob": True}),
    Row("Qwen3-MoE, weights as they come", "qwen3_moe", {**_QWEN, "head_dim": 8, "norm_topk_prob": False}),
    Row("Qwen2-MoE", "qwen2_moe", {**_QWEN, "shared_expert_intermediate_size": 16}),
    Row("OLMoE", "olmoe", {**_COUNTS, "num_experts": EXPERTS}),
)
WIDTHS = {
    "mixtral": "intermediate_size",
    "olmoe": "intermediate_size",
    "qwen2_moe": "moe_intermediate_size",
    "qwen3_moe": "moe_intermediate_size",
}
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
_UNALIGNED = {"experts_implementation": "eager"}  # the stock class's usual one wants widths that are multiples of 16 bytes


def mixture(model: Any, layer: int = 0) -> Any:
    return model.model.layers[layer].mlp


def keeping(structure: ModelStructure, kept: dict[str, list[int]]) -> PruningPlan:
    """A plan that keeps these units of these groups, and all of the others."""
    plan = conformance.plan_for(structure, "uniform")
    return replace(plan, kept={g.name: kept.get(g.name, list(range(g.units))) for g in structure.groups})


def other_channels(structure: ModelStructure) -> PruningPlan:
    """Another number of channels in each layer, others of each expert; and of two KV groups one."""
    width = structure.group(0, "ffn").units // EXPERTS
    chance, kept = torch.Generator().manual_seed(3), {}
    for layer, count in enumerate((4, 8)):
        picks = [e * width + torch.randperm(width, generator=chance)[:count] for e in range(EXPERTS)]
        kept[f"{layer}.ffn"] = torch.cat(picks).sort().values.tolist()
    if "0.attention" in {g.name for g in structure.groups}:
        kept["1.attention"] = [1]
    return keeping(structure, kept)


def slow_loop(block: Any, tokens: Tensor, normalised: bool) -> Tensor:
    """A stock block's routed experts, ``[tokens, hidden]`` -> the same, one token and one expert at a time."""
    gate_up, down, found = block.experts.gate_up_proj, block.experts.down_proj, torch.zeros_like(tokens)
    for row, token in enumerate(tokens):
        chances = (block.gate.weight @ token).float().softmax(0)
        chosen = sorted(range(len(chances)), key=lambda e: -float(chances[e]))[:CHOSEN]
        total = sum(float(chances[e]) for e in chosen) if normalised else 1.0
        for e in chosen:
            gate, up = (gate_up[e] @ token).chunk(2)
            found[row] += float(chances[e]) / total * (down[e] @ (torch.nn.functional.silu(gate) * up))
    return found


@every_row
def test_the_wide_form_computes_what_the_stock_class_does(row: Row) -> None:
    model = build(row)
    stock = copy.deepcopy(model)
    family_of(row.model_type).linear_form(model)
    torch.testing.assert_close(logits(model), logits(stock), rtol=0, atol=1e-5)
    tokens = torch.randn(7, 32)
    for found, expected in zip(mixture(model).gate(tokens), mixture(stock).gate(tokens), strict=True):
        assert torch.equal(found, expected)


@every_row
def test_the_wide_form_is_a_slow_loop(row: Row) -> None:
    model = build(row).double()
    stock = copy.deepcopy(model)
    family_of(row.model_type).linear_form(model)
    tokens = torch.randn(9, 32, dtype=torch.float64)
    block = mixture(model)
    with torch.no_grad():
        _, weights, indices = block.gate(tokens)
        found = block.experts(tokens, indices, weights)
        expected = slow_loop(mixture(stock), tokens, getattr(model.config, "norm_topk_prob", True))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # routing weights are float32 in every precision


def test_the_stacked_tensors_are_let_go_of() -> None:
    model = build(ROWS[0])
    model.requires_grad_(False)
    stacked = [weakref.ref(p) for name, p in model.named_parameters() if name.endswith(("gate_up_proj", "down_proj"))]
    count = sum(p.numel() for p in model.parameters())
    family_of("mixtral").linear_form(model)
    gc.collect()
    assert [ref() for ref in stacked] == [None] * 4
    assert sum(p.numel() for p in model.parameters()) == count
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(storages.values()) == 4 * count
    assert not any(p.requires_grad or not p.is_contiguous() for p in model.parameters())


def test_the_linear_form_is_taken_once() -> None:
    model = build(ROWS[0])
    family_of("mixtral").linear_form(model)
    before = {name: id(module) for name, module in model.named_modules()}
    family_of("mixtral").linear_form(model)
    assert before == {name: id(module) for name, module in model.named_modules()}
    assert isinstance(mixture(model).experts, WideExperts)


def test_a_copy_asks_its_own_router() -> None:
    model = build(ROWS[0])
    structure = trace_structure(model, ffn_units="expert")
    twin, before = copy.deepcopy(model), logits(model)
    prune_model(twin, structure, keeping(structure, {"0.ffn": [0, 3], "1.ffn": [1, 2]}))
    assert mixture(twin).experts._router[0] is mixture(twin).gate
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("row", ROWS[:2], ids=lambda row: row.name)
def test_router_logits_are_still_recorded(row: Row) -> None:
    """The balancing loss of training reads them."""
    model = build(row)
    stock, ids = copy.deepcopy(model), token_ids()
    family_of(row.model_type).linear_form(model)
    found, expected = (m(ids, labels=ids, output_router_logits=True) for m in (model, stock))
    torch.testing.assert_close(found.aux_loss, expected.aux_loss)
    assert [len(found.router_logits), found.router_logits[0].shape] == [2, (ids.numel(), EXPERTS)]


def test_an_expert_that_is_not_chosen_cannot_overflow() -> None:
    model = build(ROWS[0]).half()
    family_of("mixtral").linear_form(model)
    block, width = mixture(model), 24
    with torch.no_grad():
        block.experts.wide_gate.weight[:width] *= 300  # act(gate) * up of expert 0 is beyond 65504
        block.experts.wide_up.weight[:width] *= 300
        tokens = torch.randn(5, 32).half()
        away = torch.tensor([[1, 2]] * 5), torch.full((5, 2), 0.5).half()
        assert torch.isinf(torch.nn.functional.silu(block.experts.wide_gate(tokens)) * block.experts.wide_up(tokens)).any()
        assert torch.isfinite(block.experts(tokens, *away)).all()


@every_row
def test_channels_live_where_loops_say(row: Row) -> None:
    model = build(row)
    width = getattr(model.config, WIDTHS[row.model_type])
    group = trace_structure(model).group(1, "ffn")
    channels = [e * width + c for e in range(EXPERTS) for c in range(width)]
    place = "model.layers.1.mlp.experts"
    assert [(m.role, m.module, m.dim, m.index.tolist()) for m in group.members] == [
        ("gate_proj", f"{place}.wide_gate", 0, channels),
        ("up_proj", f"{place}.wide_up", 0, channels),
        ("wide_down", f"{place}.wide_down", 1, channels),
    ]
    assert (group.units, group.channels_per_unit, group.sets, group.parameters_per_unit) == (EXPERTS * width, 1, EXPERTS, 3 * 32)
    whole = trace_structure(model, ffn_units="expert").group(1, "ffn")
    router = [(m.module, m.dim, m.index.tolist()) for m in whole.members if m.role == "router"]
    assert router == [("model.layers.1.mlp.gate.router", 0, [e for e in range(EXPERTS) for _ in range(width)])]
    assert (whole.units, whole.channels_per_unit, whole.sets, whole.at_least) == (EXPERTS, width, 1, CHOSEN)
    assert whole.parameters_per_unit == 3 * 32 * width + 32
    assert (whole.expert_units, group.expert_units) == (True, False)
    assert whole.even_units(1) == [0, 1]
    attention = {("attention", 0), ("attention", 1)} if row.model_type != "olmoe" else set()
    assert attention == {(g.kind, g.layer) for g in trace_structure(model).groups if g.kind == "attention"}


@every_row
@pytest.mark.parametrize("units", ["channel", "expert"])
def test_pruned_is_masked(row: Row, units: Any) -> None:
    model = build(row, **_UNALIGNED).double()
    dense = logits(model)
    structure = trace_structure(model, ffn_units=units)
    torch.testing.assert_close(logits(model), dense, rtol=0, atol=1e-12)
    plan = other_channels(structure) if units == "channel" else keeping(structure, {"0.ffn": [1, 3], "1.ffn": [0, 2, 3]})
    with masked(model, structure, plan):
        expected = logits(model)
    assert not torch.allclose(expected, dense, atol=1e-3)
    with pruned(model, structure, plan):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits(model), dense, rtol=0, atol=1e-12)
    prune_model(model, structure, plan)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12)
    removed = sum((g.units - len(plan.kept[g.name])) * g.parameters_per_unit for g in structure.groups)
    assert sum(p.numel() for p in model.parameters()) == structure.parameters - removed


def test_experts_must_lose_equally_many_channels() -> None:
    model = build(ROWS[0])
    structure = trace_structure(model)
    with pytest.raises(PlanError, match=r"equally many units to stay in each of the 4 sets of group 0.ffn, got \[23, 24, 24, 24\]"):
        prune_model(model, structure, keeping(structure, {"0.ffn": list(range(1, 96))}))


@every_row
def test_dense_tensors_stack_to_the_very_same(row: Row) -> None:
    model, family = build(row), family_of(row.model_type)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert family.stock_state(before, model.config).keys() == before.keys()
    family.linear_form(model)
    after = family.stock_state(model.state_dict(), model.config)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].is_contiguous() for name in before)


@every_row
@pytest.mark.parametrize("units", ["channel", "expert"])
def test_the_stock_class_takes_the_pruned_tensors(row: Row, units: Any) -> None:
    model = build(row)
    config = copy.deepcopy(model.config)
    structure = trace_structure(model, ffn_units=units)
    width = structure.group(0, "ffn").channels // EXPERTS
    if units == "channel":
        kept = [[e * width + (e + s * c) % width for e in range(EXPERTS) for c in range(8)] for s in (1, 5)]
        setattr(config, WIDTHS[row.model_type], 8)
    else:
        kept = [[0, 1, 3], [0, 2, 3]]
        setattr(config, "num_experts" if row.model_type in ("qwen2_moe", "olmoe") else "num_local_experts", 3)
    prune_model(model, structure, keeping(structure, {f"{layer}.ffn": sorted(units) for layer, units in enumerate(kept)}))
    stock = type(model)(config).eval()
    stock.load_state_dict(family_of(row.model_type).stock_state(model.state_dict(), model.config), strict=True)
    torch.testing.assert_close(logits(stock), logits(model), rtol=0, atol=1e-5)


@every_row
@pytest.mark.parametrize("units", ["channel", "expert"])
def test_generation_with_the_cache(row: Row, units: Any) -> None:
    model = build(row)
    structure = trace_structure(model, ffn_units=units)
    prune_model(
        model, structure, other_channels(structure) if units == "channel" else keeping(structure, {"0.ffn": [1, 2], "1.ffn": [0, 1, 3]})
    )
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    with_cache, without = (model.generate(token_ids(), use_cache=cache, **options) for cache in (True, False))
    assert with_cache.tolist() == without.tolist()


@every_row
@pytest.mark.parametrize("units", ["channel", "expert"])
def test_scores_are_those_of_full_gradients(row: Row, units: Any) -> None:
    model, ids = build(row), token_ids()
    structure = trace_structure(model, ffn_units=units)
    windows = TextWindows(ids, ids.clone(), torch.ones_like(ids), ["text"], torch.zeros(len(ids), dtype=torch.long), [""] * len(ids))
    found = collect_statistics(model, structure, windows)
    for sample in range(len(ids)):
        model.zero_grad()
        model(ids[sample : sample + 1], labels=ids[sample : sample + 1]).loss.backward()
        for module, dim in (tensor for group in structure.groups for tensor in group.tensors):
            weight = model.get_submodule(module).weight
            expected = (weight * weight.grad).sum(1 - dim).detach()
            torch.testing.assert_close(found.member["first", module][sample], expected, rtol=1e-3, atol=1e-5)
    inputs = found.inputs["input_square_sum", "0.ffn"]
    assert inputs.shape == (len(ids), structure.group(0, "ffn").channels)
    assert bool((inputs > 0).any(0).all())


@pytest.mark.parametrize("row", ROWS[:2], ids=lambda row: row.name)
def test_adapters_reach_the_experts(row: Row) -> None:
    model = build(row)
    trace_structure(model)
    adapted = {name for name, _ in attach_lora(model, LoRAConfig(r=2)).named_parameters() if "lora_A" in name}
    for name in ("experts.wide_gate", "experts.wide_up", "experts.wide_down", "self_attn.q_proj"):
        assert sum(f".{name}." in found for found in adapted) == 2
    conformance.check_recovery(row)


def test_the_refit_repairs() -> None:
    conformance.check_refit(ROWS[0])


@every_row
def test_whole_experts_are_out_of_the_choice(row: Row) -> None:
    """Masked experts as if they had never been there: a stock block with the others only, one token at a time."""
    model = build(row).double()
    stock, kept = copy.deepcopy(mixture(model)), [1, 2, 3]
    structure = trace_structure(model, ffn_units="expert")
    tokens = torch.randn(9, 32, dtype=torch.float64)
    with torch.no_grad():
        for tensor in ("gate_up_proj", "down_proj"):
            setattr(stock.experts, tensor, torch.nn.Parameter(getattr(stock.experts, tensor)[kept]))
        stock.gate.weight = torch.nn.Parameter(stock.gate.weight[kept])
        expected = slow_loop(stock, tokens, getattr(model.config, "norm_topk_prob", True))
        block = mixture(model)
        with masked(model, structure, keeping(structure, {"0.ffn": kept})):
            _, weights, indices = block.gate(tokens)
            found = block.experts(tokens, indices, weights)
    assert not (indices == 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(block.gate, LinearRouter)
    assert (block.gate(tokens)[2] == 0).any(), "the mask outlived its block"


def test_as_many_experts_stay_as_a_token_chooses() -> None:
    model = build(ROWS[0])
    structure = trace_structure(model, ffn_units="expert")
    message = "at least 2 experts to stay in group 0.ffn, as many as a token chooses, got 1"
    with pytest.raises(PlanError, match=message), masked(model, structure, keeping(structure, {"0.ffn": [2]})):
        pass


def test_experts_are_asked_of_a_mixture_only() -> None:
    dense = build(Row("Llama", "llama", {"num_key_value_heads": 2}))
    with pytest.raises(ConfigurationError, match="ffn_units: expected 'channel' for LlamaForCausalLM, got 'expert'"):
        trace_structure(dense, ffn_units="expert")
    with pytest.raises(ConfigurationError, match="ffn_units: expected 'channel' or 'expert', got 'expret'"):
        trace_structure(dense, ffn_units="expret")  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}], ids=["listed", "every_second"])
def test_dense_layers_in_between_are_refused(changes: dict[str, Any]) -> None:
    model = build(ROWS[1], **changes)
    before = logits(model)
    with pytest.raises(ModelError, match="expected experts in all 2 decoder layers of Qwen3MoeForCausalLM, got them in 1"):
        trace_structure(model)
    assert torch.equal(logits(model), before)


@every_row
@pytest.mark.parametrize("kept", [[[1, 3], [0, 2]], [[1, 3], [0, 1, 2]]], ids=["uniform", "irregular"])
def test_an_export_has_the_experts_that_stay(row: Row, kept: list[list[int]], tmp_path: Path) -> None:
    model = build(row)
    structure = trace_structure(model, ffn_units="expert")
    plan = keeping(structure, {f"{layer}.ffn": units for layer, units in enumerate(kept)})
    width, uniform = getattr(model.config, WIDTHS[row.model_type]), len(kept[0]) == len(kept[1])
    assert trace_for_plan(model, plan).group(0, "ffn").expert_units
    prune_model(model, structure, plan)
    assert (model.config.num_experts, getattr(model.config, WIDTHS[row.model_type])) == (2 if uniform else EXPERTS, width)
    record = export_model(model, None, structure, plan, tmp_path / "export")
    assert record.stock is uniform
    torch.testing.assert_close(logits(load(tmp_path / "export")), logits(model), rtol=0, atol=1e-5)


def test_too_few_experts_are_neither_cut_nor_budgeted() -> None:
    model = build(ROWS[0])
    structure = trace_structure(model, ffn_units="expert")
    with pytest.raises(PlanError, match=r"at least 2 experts to stay in group 0.ffn, as many as a token chooses, got 1; prune less"):
        prune_model(model, structure, keeping(structure, {"0.ffn": [2]}))
    assert Budget(0.3).most_removed(structure)["0.ffn"] == EXPERTS - CHOSEN
