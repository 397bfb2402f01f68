"""What a cut leaves and what comes back, tensor by tensor; that masks, slices and surgery agree is in ``test_surgery.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapruner.errors import ModelError, PlanError
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.masking import masked
from adapruner.pruning.surgery import prune_model, pruned
from tests.oracles.surgery import assert_same, plan_of, random_plan, snapshot

Builder = Callable[..., Any]


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_cut_tensors_are_the_dense_rows_and_columns(tiny_model: Builder) -> None:
    model = tiny_model("llama_biased")
    structure, dense = trace_structure(model), copy.deepcopy(model)
    prune_model(model, structure, plan_of(structure, {"1.attention": [1], "2.ffn": [0, 5, 23]}))

    attention, whole = model.model.layers[1].self_attn, dense.model.layers[1].self_attn
    assert torch.equal(attention.q_proj.weight, whole.q_proj.weight[16:])  # the second KV head has query heads 2 and 3
    assert torch.equal(attention.q_proj.bias, whole.q_proj.bias[16:])
    assert torch.equal(attention.v_proj.weight, whole.v_proj.weight[8:])
    assert torch.equal(attention.o_proj.weight, whole.o_proj.weight[:, 16:])
    assert torch.equal(attention.o_proj.bias, whole.o_proj.bias)
    mlp, whole = model.model.layers[2].mlp, dense.model.layers[2].mlp
    assert torch.equal(mlp.up_proj.weight, whole.up_proj.weight[[0, 5, 23]])
    assert torch.equal(mlp.gate_proj.bias, whole.gate_proj.bias[[0, 5, 23]])
    assert torch.equal(mlp.down_proj.weight, whole.down_proj.weight[:, [0, 5, 23]])
    assert torch.equal(mlp.down_proj.bias, whole.down_proj.bias)
    untouched = {n for n, p in model.named_parameters() if p.shape == dense.get_parameter(n).shape}
    assert all(torch.equal(model.get_parameter(n), dense.get_parameter(n)) for n in untouched)
    assert len(untouched) == len(dict(model.named_parameters())) - 12
    assert all(p.is_contiguous() for p in model.parameters())


def test_uniform_widths_go_into_the_configuration(tiny_model: Builder) -> None:
    model = tiny_model("llama_gqa_4")
    structure = trace_structure(model)
    kept = {f"{i}.attention": [i % 2] for i in range(3)} | {f"{i}.ffn": list(range(i, i + 10)) for i in range(3)}
    prune_model(model, structure, plan_of(structure, kept))

    config = model.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim, config.intermediate_size) == (1, 4, 4, 10)
    again = type(model)(config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(again.eval()), logits(model))


def test_irregular_widths_leave_the_configuration(tiny_model: Builder) -> None:
    model = tiny_model("llama")
    structure, before = trace_structure(model), model.config.to_dict()
    prune_model(model, structure, plan_of(structure, {"0.attention": [0, 1], "2.ffn": [3]}))

    assert model.config.to_dict() == before


def test_the_block_restores_the_model_when_it_raises(tiny_model: Builder) -> None:
    model = tiny_model("qwen2")
    structure = trace_structure(model)
    plan, before = random_plan(structure, 2), snapshot(model)

    for context in (pruned, masked):
        with pytest.raises(RuntimeError, match="out of memory"), context(model, structure, plan):
            raise RuntimeError("out of memory")
        assert_same(before, snapshot(model))


def test_a_cut_that_fails_half_way_restores_the_model(tiny_model: Builder) -> None:
    model = tiny_model("llama_gqa_2")
    structure = trace_structure(model)
    plan = plan_of(structure, {"0.attention": [1], "2.ffn": [1, 2]})
    model.model.layers[2].mlp.up_proj = nn.Sequential(model.model.layers[2].mlp.up_proj)
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[2].mlp.up_proj.bias = None
    model.model.layers[2].mlp.up_proj.in_features = model.model.layers[2].mlp.up_proj.out_features = 0
    before = snapshot(model)

    message = r"expected model\.layers\.2\.mlp\.up_proj to be a linear layer, got Sequential; prune before adapters"
    with pytest.raises(ModelError, match=message), pruned(model, structure, plan):
        pytest.fail("the block must not run")
    assert_same(before, snapshot(model))


def test_surgery_preserves_requires_grad_and_trains(tiny_model: Builder) -> None:
    model = tiny_model("llama_biased")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("up_proj" in name or "lm_head" in name)
    required = {n: p.requires_grad for n, p in model.named_parameters()}
    structure = trace_structure(model)
    prune_model(model, structure, random_plan(structure, 5))

    assert {n: p.requires_grad for n, p in model.named_parameters()} == required
    ids = torch.arange(3, 12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {n for n, flag in required.items() if flag}


def test_a_plan_that_keeps_all_changes_nothing(tiny_model: Builder) -> None:
    model = tiny_model("mistral")
    structure, before = trace_structure(model), logits(model)
    plan = plan_of(structure, {})
    with masked(model, structure, plan):
        assert torch.equal(logits(model), before)
    prune_model(model, structure, plan)

    assert torch.equal(logits(model), before)
    assert count_parameters(model) == structure.parameters


@pytest.mark.parametrize("cut", [pruned, prune_model])
def test_a_plan_that_empties_a_group_is_refused_before_anything_is_cut(tiny_model: Builder, cut: Any) -> None:
    model = tiny_model("llama")
    structure, before = trace_structure(model), snapshot(model)
    plan = plan_of(structure, {"0.ffn": [1], "2.attention": []})

    with pytest.raises(PlanError, match=r"expected at least one unit to stay in group 2\.attention, got none"):
        enter(cut(model, structure, plan))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("cut", [pruned, prune_model, masked])
def test_a_plan_of_another_model_is_refused_before_anything_is_cut(tiny_model: Builder, cut: Any) -> None:
    model, other = tiny_model("llama"), tiny_model("llama", intermediate_size=20)
    structure, before = trace_structure(model), snapshot(model)

    with pytest.raises(PlanError, match=r"expected units 24 in group '0\.ffn' of this model, got 20"):
        enter(cut(model, structure, random_plan(trace_structure(other), 0)))
    assert_same(before, snapshot(model))


def enter(result: Any) -> None:
    """Runs an empty block where the result is a context manager."""
    if hasattr(result, "__enter__"):
        with result:
            pass
