"""Every family that is promised to work, as a tiny configuration: the table behind the tests and ``docs/families.md``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

VOCABULARY = 50


@dataclass(frozen=True)
class Row:
    """One family, or one of its forms."""

    name: str
    """As people call it."""
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Besides the common sizes."""
    removes: tuple[str, ...] = ("attention", "ffn")
    """What can be removed."""
    stock: bool = True
    """Whether uniform widths are read by the stock class (or an equivalent one)."""
    note: str = ""
    """What does not work, or works in another way."""


_GROUPED = {"num_key_value_heads": 2}
_HEAD = {"num_key_value_heads": 2, "head_dim": 8}
_EAGER = {"experts_implementation": "eager"}  # the stock default needs float32 or less, and aligned widths
_FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, **_EAGER}
_EXPERTS = (
    "equally many channels go from each expert, or whole experts (`ffn_units: expert`); every expert computes every token while the "
    "model is being pruned, so that costs more; widths that are no multiple of 16 bytes need `experts_implementation: eager`"
)
_NO_HEAD_DIM = "its configuration derives the head width from the number of heads, so removed heads need the modelling file"

ROWS: tuple[Row, ...] = (
    Row(
        "Llama 1, 2; Vicuna",
        "llama",
        {"num_key_value_heads": 4},
        note="a number of heads that its configuration refuses goes out as Mistral",
    ),
    Row("Llama 3, TinyLlama", "llama", _GROUPED),
    Row("Mistral", "mistral", {**_GROUPED, "sliding_window": 4}),
    Row("Qwen2", "qwen2", _GROUPED),
    Row("Qwen3", "qwen3", _HEAD),
    Row("Gemma", "gemma", _HEAD),
    Row("Gemma 2", "gemma2", _HEAD),
    Row("Gemma 3 (text)", "gemma3_text", _HEAD),
    Row("Phi-3, Phi-4", "phi3", _GROUPED),
    Row("OPT", "opt", {"ffn_dim": 24, "word_embed_proj_dim": 32}, stock=False, note=_NO_HEAD_DIM),
    Row("GPT-NeoX, Pythia", "gpt_neox", {}, stock=False, note=_NO_HEAD_DIM),
    Row("BLOOM", "bloom", {}, stock=False, note="its configuration has neither width; ALiBi's slopes of the kept heads go along"),
    Row("GPT-2", "gpt2", {"n_inner": 24}, stock=False, note=_NO_HEAD_DIM),
    Row(
        "Falcon, grouped",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 24},
        stock=False,
        note=_NO_HEAD_DIM,
    ),
    Row(
        "Falcon, one KV head",
        "falcon",
        {"new_decoder_architecture": False, "multi_query": True, "ffn_hidden_size": 24},
        note="the one KV head stays: heads go as single query heads only (attention_units: query_head)",
    ),
    Row(
        "Falcon, one KV head per head",
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "ffn_hidden_size": 24},
        stock=False,
        note=_NO_HEAD_DIM,
    ),
    Row(
        "Falcon with ALiBi",
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "ffn_hidden_size": 24},
        ("ffn",),
    ),
    Row("OLMo", "olmo", _GROUPED),
    Row("OLMo 2", "olmo2", _GROUPED, ("ffn",), note="heads stay: its norm of queries and keys runs over all of them"),
    Row("OLMo 3", "olmo3", _GROUPED, ("ffn",), note="heads stay: its norm of queries and keys runs over all of them"),
    Row("SmolLM3", "smollm3", _GROUPED),
    Row("Granite", "granite", _GROUPED),
    Row("Cohere", "cohere", _GROUPED),
    Row(
        "Cohere with norms of queries and keys",
        "cohere",
        {**_GROUPED, "use_qk_norm": True},
        ("ffn",),
        note="heads stay: their norms have weights of their own",
    ),
    Row("Cohere 2", "cohere2", _GROUPED),
    Row("Starcoder2", "starcoder2", _GROUPED),
    Row("StableLM", "stablelm", _GROUPED, stock=False, note=_NO_HEAD_DIM),
    Row("Phi-1, Phi-2", "phi", {}, stock=False, note=_NO_HEAD_DIM),
    Row("GLM-4", "glm4", _HEAD),
    Row("Helium", "helium", _HEAD, stock=False, note=_NO_HEAD_DIM),
    Row("EXAONE 4", "exaone4", _GROUPED),
    Row("Nemotron", "nemotron", _GROUPED),
    Row("Mixtral", "mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, **_EAGER}, note=_EXPERTS),
    Row("Qwen2-MoE", "qwen2_moe", {**_GROUPED, **_FEW, "shared_expert_intermediate_size": 16}, note=_EXPERTS),
    Row("Qwen3-MoE", "qwen3_moe", {**_HEAD, **_FEW}, note=_EXPERTS),
    Row("OLMoE", "olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, **_EAGER}, ("ffn",), note=_EXPERTS),
)

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def build(row: Row, **changes: Any) -> Any:
    """A random float32 model, whose biases and norms are not the zeros and ones they are born as."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(row.model_type, **{**COMMON, **row.changes, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model
