"""Where each channel of every family lives, by loops over heads and dimensions, from the configuration and the names alone."""

from __future__ import annotations

from typing import Any

Entry = tuple[str, int, list[int]]

#: Model type -> (layers, q, k, v, output of attention, FFN inputs, output of the FFN); one name for q, k and v: fused.
_LLAMA = (
    "model.layers",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
)
_FUSED = ("transformer.h", ("self_attention.query_key_value",) * 3, "self_attention.dense", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")
NAMES: dict[str, tuple[str, tuple[str, str, str], str, tuple[str, ...], str]] = {
    "phi3": (_LLAMA[0], ("self_attn.qkv_proj",) * 3, _LLAMA[2], ("mlp.gate_up_proj",) * 2, _LLAMA[4]),
    "glm4": (*_LLAMA[:3], ("mlp.gate_up_proj",) * 2, _LLAMA[4]),
    "opt": ("model.decoder.layers", _LLAMA[1], "self_attn.out_proj", ("fc1",), "fc2"),
    "gpt_neox": ("gpt_neox.layers", ("attention.query_key_value",) * 3, "attention.dense", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    "bloom": _FUSED,
    "falcon": _FUSED,
    "gpt2": ("transformer.h", ("attn.c_attn",) * 3, "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    "starcoder2": (*_LLAMA[:3], ("mlp.c_fc",), "mlp.c_proj"),
    "phi": (*_LLAMA[:2], "self_attn.dense", ("mlp.fc1",), "mlp.fc2"),
    "nemotron": (*_LLAMA[:3], ("mlp.up_proj",), "mlp.down_proj"),
}


#: Model type -> the configuration's name of the feed-forward width, where it is not intermediate_size.
FFN_WIDTHS = {"opt": "ffn_dim", "gpt2": "n_inner", "falcon": "ffn_hidden_size"}


def ffn_width(config: Any) -> int:
    """Channels of the feed-forward network."""
    if config.model_type == "bloom":
        return 4 * config.hidden_size
    return getattr(config, FFN_WIDTHS.get(config.model_type, "intermediate_size"))


def key_value_heads(config: Any) -> int:
    """KV heads."""
    if config.model_type == "falcon":
        if config.new_decoder_architecture:
            return config.num_kv_heads
        return 1 if config.multi_query else config.num_attention_heads
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def qkv_rows(config: Any, head: int, d: int) -> tuple[int, int, int]:
    """Rows of query, key and value of one channel: dimension ``d`` of query head ``head``."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, groups = config.num_attention_heads, key_value_heads(config)
    group, place = divmod(head, heads // groups)
    if config.model_type in ("gpt_neox", "bloom") or (config.model_type == "falcon" and groups == heads):
        return tuple((3 * head + part) * width + d for part in range(3))  # type: ignore[return-value]
    if config.model_type == "falcon" and config.new_decoder_architecture:
        block = heads // groups + 2
        return tuple((group * block + part) * width + d for part in (place, block - 2, block - 1))  # type: ignore[return-value]
    if len(set(NAMES.get(config.model_type, _LLAMA)[1])) == 1:
        return head * width + d, (heads + group) * width + d, (heads + groups + group) * width + d
    return head * width + d, group * width + d, group * width + d


def family_maps(config: Any) -> dict[str, list[Entry]]:
    """Kind -> entries of layer 0: (module, dim, row or column of each channel)."""
    layers, qkv, output, inputs, down = NAMES.get(config.model_type, _LLAMA)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows: list[list[int]] = [[], [], []]
    for head in range(config.num_attention_heads):
        for d in range(width):
            for part, row in enumerate(qkv_rows(config, head, d)):
                rows[part].append(row)
    at = f"{layers}.0."
    channels = list(range(config.num_attention_heads * width))
    attention: list[Entry] = [(at + name, 0, rows[part]) for part, name in enumerate(qkv)]
    ffn = ffn_width(config)
    fused = len(inputs) > len(set(inputs))
    feed: list[Entry] = [(at + name, 0, [c + ffn * fused * part for c in range(ffn)]) for part, name in enumerate(inputs)]
    return {"attention": [*attention, (at + output, 1, channels)], "ffn": [*feed, (at + down, 1, list(range(ffn)))]}
