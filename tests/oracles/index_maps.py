"""Where each channel lives and what a unit weighs, written by hand from the configuration alone: no tracing."""

from __future__ import annotations

from typing import Any


def head_width(config: Any) -> int:
    """Dimensions of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def index_maps(config: Any) -> dict[str, list[tuple[str, int, list[int]]]]:
    """Group name -> (module, dim, row or column of each channel), in the order q, k, v, o and gate, up, down."""
    width, heads, kv_heads = head_width(config), config.num_attention_heads, config.num_key_value_heads
    own = list(range(heads * width))
    shared = []
    for head in range(heads):
        kv_head = head // (heads // kv_heads)
        shared += [kv_head * width + d for d in range(width)]
    ffn = list(range(config.intermediate_size))
    maps = {}
    for layer in range(config.num_hidden_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        maps[f"{layer}.attention"] = [
            (f"{attention}.q_proj", 0, own),
            (f"{attention}.k_proj", 0, shared),
            (f"{attention}.v_proj", 0, shared),
            (f"{attention}.o_proj", 1, own),
        ]
        maps[f"{layer}.ffn"] = [(f"{mlp}.gate_proj", 0, ffn), (f"{mlp}.up_proj", 0, ffn), (f"{mlp}.down_proj", 1, ffn)]
    return maps


def parameters_per_unit(config: Any) -> dict[str, int]:
    """Kind -> parameters that go with one unit, biases of rows included; the output projection's bias stays."""
    width, per_kv = head_width(config), config.num_attention_heads // config.num_key_value_heads
    attention = 2 * width * per_kv * config.hidden_size + 2 * width * config.hidden_size
    ffn = 3 * config.hidden_size
    if getattr(config, "attention_bias", False) or config.model_type == "qwen2":
        attention += width * per_kv + 2 * width
    if getattr(config, "mlp_bias", False):
        ffn += 2
    return {"attention": attention, "ffn": ffn}


def block_parameters(config: Any) -> int:
    """What could go if every unit went."""
    per_unit = parameters_per_unit(config)
    per_layer = config.num_key_value_heads * per_unit["attention"] + config.intermediate_size * per_unit["ffn"]
    return int(config.num_hidden_layers * per_layer)
