"""Parameters, MACs and memory against closed forms; latencies only for being there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from adapruner.errors import ConfigurationError, ModelError
from adapruner.evaluation import cost
from adapruner.evaluation.cost import cost_protocol, count_macs, measure_latency, random_dense_model, weight_memory_gib
from adapruner.evaluation.cost_table import measure_costs
from adapruner.evaluation.timing import WARM_UP_ROUNDS, Latency

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCABULARY = 32, 48, 4, 2, 8, 2, 50


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    sizes = {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    others = {"head_dim": HEAD_DIM, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    return LlamaConfig(**{**sizes, **others, **changes})


def llama(**changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(llama_config(**changes))


def llama_macs(tokens: int, batch: int = 1, heads: int = HEADS, kv_heads: int = KV_HEADS) -> int:
    """q, k, v, o, gate, up, down, the two attention products, lm_head."""
    linears = HIDDEN * HEAD_DIM * (2 * heads + 2 * kv_heads) + 3 * HIDDEN * FFN
    attention = 2 * heads * HEAD_DIM * tokens
    return batch * tokens * (LAYERS * (linears + attention) + HIDDEN * VOCABULARY)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("seq_len", "batch"), [(1, 1), (16, 1), (13, 3)])
def test_macs_of_a_llama_have_the_closed_form(implementation: str, seq_len: int, batch: int) -> None:
    model = llama()
    model.set_attn_implementation(implementation)
    model.train()
    assert count_macs(model, seq_len, batch) == llama_macs(seq_len, batch)
    assert model.training


def test_macs_with_as_many_kv_heads_as_heads() -> None:
    assert count_macs(llama(num_key_value_heads=HEADS), 16) == llama_macs(16, kv_heads=HEADS)


def test_macs_of_experts_count_the_chosen_ones_only() -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_hidden_layers=1,
        vocab_size=VOCABULARY,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    attention = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS) + 2 * HEADS * HEAD_DIM * 16
    expected = 16 * (attention + HIDDEN * 4 + 2 * 3 * HIDDEN * FFN + HIDDEN * VOCABULARY)
    assert count_macs(AutoModelForCausalLM.from_config(config), 16) == expected


def test_every_fused_attention_counts_query_heads_only() -> None:
    query, key = torch.Size([2, 4, 5, 8]), torch.Size([2, 2, 7, 8])
    formulas = cost._formulas()
    fused = [formula for name, formula in formulas.items() if "scaled_dot_product" in str(name)]
    assert len(fused) == 4
    assert {formula(query, key, key, 0.0, True, out_shape=None) for formula in fused} == {2 * 2 * (2 * 4 * 5 * 7 * 8)}


def test_kernels_that_cannot_be_counted_are_refused() -> None:
    model = llama()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="expected attn_implementation 'eager' or 'sdpa', got 'flex_attention'"):
        count_macs(model, 8)


@pytest.mark.parametrize("tied", [False, True])
def test_weight_memory_counts_tied_embeddings_once(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied).to(torch.bfloat16)
    layer = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * FFN + 2 * HIDDEN
    parameters = LAYERS * layer + HIDDEN + VOCABULARY * HIDDEN * (1 if tied else 2)
    assert weight_memory_gib(model) == 2 * parameters / 2**30


def test_weight_memory_counts_persistent_buffers_only() -> None:
    module = nn.Module()
    module.register_buffer("kept", torch.zeros(256, dtype=torch.int8))
    module.register_buffer("scratch", torch.zeros(1000), persistent=False)
    assert weight_memory_gib(module) * 2**30 == 256


def test_latencies_are_positive_and_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned = llama(), llama(intermediate_size=16)
    order: list[str] = []
    timed = cost.time_prefill

    def spy(model: nn.Module, seq_len: int, batch: int) -> float:
        order.append("dense" if model is dense else "pruned")
        assert not torch.is_grad_enabled()
        assert not model.training
        return timed(model, seq_len, batch)

    monkeypatch.setattr(cost, "time_prefill", spy)
    dense.train()
    state = torch.get_rng_state()
    latencies = measure_latency({"dense": dense, "pruned": pruned}, seq_len=12, repeats=3)
    assert list(latencies) == ["dense", "pruned"]
    for latency in latencies.values():
        assert 0 < latency.prefill_ms < math.inf
        assert 0 < latency.decode_ms < math.inf
        assert latency.prefill_iqr_ms >= 0
        assert latency.decode_iqr_ms >= 0
    assert order == ["dense", "pruned"] * (WARM_UP_ROUNDS + 3)
    assert dense.training
    assert torch.equal(torch.get_rng_state(), state)


def test_summary_is_median_and_interquartile_range() -> None:
    pairs = [(float(x), 10.0 * x) for x in (9, 1, 5, 3, 7)]
    assert Latency.of_rounds(pairs) == Latency(5.0, 4.0, 50.0, 40.0)
    assert Latency.of_rounds([(2.0, 3.0)]) == Latency(2.0, 0.0, 3.0, 0.0)


def test_decoding_never_leaves_the_models_positions() -> None:
    from transformers import AutoModelForCausalLM, OPTConfig

    config = OPTConfig(
        hidden_size=16,
        ffn_dim=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=20,
        max_position_embeddings=20,
        word_embed_proj_dim=16,
    )
    latency = measure_latency({"opt": AutoModelForCausalLM.from_config(config)}, seq_len=20, repeats=1)["opt"]
    assert latency.decode_ms > 0


def test_costs_have_both_names_and_the_counts_of_each() -> None:
    dense, pruned = llama(), llama(num_attention_heads=2, num_key_value_heads=1)
    costs = measure_costs({"dense": dense, "pruned": pruned}, seq_len=16, repeats=2)
    assert list(costs) == ["dense", "pruned"]
    assert costs["dense"]["macs"] == llama_macs(16)
    assert costs["pruned"]["macs"] == llama_macs(16, heads=2, kv_heads=1)
    assert costs["dense"]["parameters"] - costs["pruned"]["parameters"] == LAYERS * HIDDEN * HEAD_DIM * (2 * 2 + 2 * 1)
    assert costs["pruned"]["weight_memory_gib"] == costs["pruned"]["parameters"] * 4 / 2**30
    assert all(0 < value["latency_ms"] < math.inf and value["latency_iqr_ms"] >= 0 and value["decode_ms"] > 0 for value in costs.values())


def test_random_dense_model_has_the_shapes_and_leaves_config_and_random_state_alone() -> None:
    model, config = llama(), llama_config()
    record, state = config.to_dict(), torch.get_rng_state()
    twin = random_dense_model(config, dtype=torch.bfloat16)
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert not twin.training
    assert config.to_dict() == record
    assert torch.equal(torch.get_rng_state(), state)
    alone = measure_costs({"twin": twin}, seq_len=8, repeats=1)["twin"]
    assert alone["macs"] == llama_macs(8)
    assert alone["weight_memory_gib"] == 2 * alone["parameters"] / 2**30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_len": 1}, "seq_len: expected at least 2 and at most 64, the model's positions, got 1"),
        ({"seq_len": 65}, "seq_len: expected at least 2 and at most 64, the model's positions, got 65"),
        ({"seq_len": 8, "batch": 0}, "batch: expected a positive integer, got 0"),
        ({"seq_len": 8, "repeats": 0}, "repeats: expected a positive integer, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        measure_latency({"model": llama()}, **arguments)


def test_no_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="models: expected at least one, got none"):
        measure_latency({}, seq_len=8)


def test_protocol_says_where_and_how() -> None:
    threads = torch.get_num_threads()
    text = cost_protocol(llama(), seq_len=10, batch=2, repeats=1)
    assert text.startswith(f"CPU with {threads} thread{'s' if threads > 1 else ''}, float32, torch {torch.__version__}: MACs")
    assert "2 x 10 tokens" in text
    assert "last 5 of 10 tokens" in text
    assert "median of 1 round after 2 of warm-up" in text
