from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from adapruner.errors import ModelError
from adapruner.models.tracing import find_decoder_layers, trace_structure
from adapruner.models.units import count_parameters
from tests.oracles.index_maps import block_parameters, index_maps, parameters_per_unit

Builder = Callable[..., Any]


def test_maps_equal_those_written_by_hand(tiny_model: Builder, family: str) -> None:
    model = tiny_model(family)
    structure = trace_structure(model)

    traced = {g.name: [(m.module, m.dim, m.index.tolist()) for m in g.members] for g in structure.groups}

    assert traced == index_maps(model.config)
    assert list(traced) == [f"{layer}.{kind}" for layer in range(3) for kind in ("attention", "ffn")]
    assert all(g.output is g.members[-1] and g.output.dim == 1 for g in structure.groups)


def test_counts_equal_closed_forms(tiny_model: Builder, family: str) -> None:
    model = tiny_model(family)
    config, structure = model.config, trace_structure(model)

    for group in structure.groups:
        assert group.parameters_per_unit == parameters_per_unit(config)[group.kind]
        assert group.units == (config.num_key_value_heads if group.kind == "attention" else config.intermediate_size)
        assert group.channels == model.get_submodule(group.output.module).in_features
        assert group is structure.group(group.layer, group.kind)
    assert structure.block_parameters == block_parameters(config)
    assert (structure.layers, structure.model_type) == (config.num_hidden_layers, config.model_type)
    assert structure.parameters == model.num_parameters()


def test_rows_of_a_grouped_query_head_are_shared_out(tiny_model: Builder) -> None:
    group = trace_structure(tiny_model("llama_gqa_4")).group(1, "attention")
    query, key = group.members[0], group.members[1]

    assert query.share.tolist() == [1.0] * 32
    assert key.share.tolist() == [0.25] * 32
    assert group.channels_of([1]).tolist() == list(range(16, 32))
    assert key.positions(group.channels_of([1])).tolist() == [4, 5, 6, 7]
    assert query.positions(group.channels_of([1])).tolist() == list(range(16, 32))


def test_tied_embeddings_count_once(tiny_model: Builder) -> None:
    tied, untied = tiny_model("llama", tie_word_embeddings=True), tiny_model("llama", tie_word_embeddings=False)

    assert count_parameters(untied) - count_parameters(tied) == 50 * 32
    assert trace_structure(tied).parameters == count_parameters(tied)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 6_738_415_616),  # LLaMA-7B
        ({"vocab_size": 128_256, "intermediate_size": 14_336, "num_key_value_heads": 8}, 8_030_261_248),  # Llama-3-8B
    ],
)
def test_full_size_shapes_trace_on_the_meta_device(changes: dict[str, Any], parameters: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**changes))
    start = time.monotonic()
    structure = trace_structure(model)

    assert time.monotonic() - start < 20
    assert structure.parameters == parameters
    assert structure.block_parameters == block_parameters(model.config)
    if not changes:  # LLM-Pruner's recipe: 24 of 32 heads and 8256 of 11008 channels in layers 4 to 29
        heads, channels = structure.group(4, "attention"), structure.group(29, "ffn")
        assert (heads.units, channels.units) == (32, 11_008)
        removed = 26 * ((32 - 24) * heads.parameters_per_unit + (11_008 - 8_256) * channels.parameters_per_unit)
        assert structure.parameters - removed == 5_422_977_024


def test_the_model_is_not_touched(tiny_model: Builder) -> None:
    model = tiny_model("qwen2").train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    state = {name: (p, p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    config = model.config.to_dict()

    trace_structure(model)

    assert [m.training for m in model.modules()] == modes
    assert model.config.to_dict() == config
    for name, parameter in model.named_parameters():
        same, value, required = state[name]
        assert parameter is same
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == required
        assert parameter.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_half_precision_and_fused_attention_trace_alike(tiny_model: Builder) -> None:
    model = tiny_model("llama_gqa_2").to(torch.bfloat16)

    assert model.config._attn_implementation == "sdpa"
    assert trace_structure(model).block_parameters == block_parameters(model.config)
    assert model.config._attn_implementation == "sdpa"


def narrow(layer: nn.Module, **widths: int) -> None:
    """Gives linear layers of an MLP other widths."""
    for name, width in widths.items():
        sizes = (width, 32) if name == "down_proj" else (32, width)
        setattr(layer.mlp, name, nn.Linear(*sizes, bias=False))


def test_a_narrower_layer_is_traced_at_its_own_width(tiny_model: Builder) -> None:
    model = tiny_model("llama")
    narrow(model.model.layers[2], gate_proj=20, up_proj=20, down_proj=20)

    structure = trace_structure(model)

    units = {layer: structure.group(layer, "ffn").units for layer in range(structure.layers)}
    assert units == {0: model.config.intermediate_size, 1: model.config.intermediate_size, 2: 20}
    assert structure.configured.ffn == model.config.intermediate_size
    assert structure.parameters == sum(p.numel() for p in model.parameters())
    assert structure.block_parameters == structure.parameters - sum(
        p.numel() for n, p in model.named_parameters() if "norm" in n or "embed" in n or "lm_head" in n
    )


@pytest.mark.parametrize(
    "widths", [{"up_proj": 20}, {"gate_proj": 20, "down_proj": 20}, {"gate_proj": 999, "up_proj": 999, "down_proj": 999}]
)
def test_a_layer_that_no_surgery_leaves_is_refused(tiny_model: Builder, widths: dict[str, int]) -> None:
    model = tiny_model("llama")
    narrow(model.model.layers[2], **widths)

    with pytest.raises(
        ModelError, match=r"expected model\.layers\.2\.mlp\.\w+ to be a linear layer of shape .* got .*give the dense model"
    ):
        trace_structure(model)


def test_a_model_with_other_layers_is_refused(tiny_model: Builder) -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.v_proj = nn.Sequential(nn.Linear(32, 32, bias=False))

    with pytest.raises(
        ModelError, match=r"expected model\.layers\.1\.self_attn\.v_proj to be a linear layer of shape \(32, 32\) .* got None"
    ):
        trace_structure(model)


def test_a_lost_bias_is_refused(tiny_model: Builder) -> None:
    model = tiny_model("llama_biased")
    model.model.layers[1].mlp.up_proj.bias = None

    with pytest.raises(ModelError, match=r"expected model\.layers\.1\.mlp\.up_proj to .*bias"):
        trace_structure(model)


def test_an_encoder_is_refused() -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(ModelError, match=r"got 3 in BertLayer; write a file for its family"):
        trace_structure(BertForMaskedLM(BertConfig(**sizes)))


def test_an_encoder_and_decoder_of_the_same_depth_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2)
    with pytest.raises(
        ModelError, match=r"expected one list of 2 decoder layers in T5ForConditionalGeneration, got 2; give a decoder-only"
    ):
        find_decoder_layers(T5ForConditionalGeneration(config))


def test_a_depth_that_the_configuration_does_not_have_is_refused(tiny_model: Builder) -> None:
    model = tiny_model("llama")
    model.model.layers = model.model.layers[:2]

    with pytest.raises(ModelError, match=r"expected one list of 3 decoder layers in LlamaForCausalLM, got 0"):
        trace_structure(model)
