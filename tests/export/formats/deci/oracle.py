"""DeciLM's decoder, written out from what engines do with ``block_configs``: slow, float64, no module of anyone's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, silu


def deci_logits(folder: Path, ids: Tensor) -> Tensor:
    """``[b, t, vocabulary]``, of one file of weights."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    hidden = weights["model.embed_tokens.weight"][ids]
    for index, block in enumerate(config["block_configs"]):
        own = {name.removeprefix(f"model.layers.{index}."): t for name, t in weights.items() if name.startswith(f"model.layers.{index}.")}
        assert (
            "ffn_mult" not in block["ffn"] or rounded(block["ffn"]["ffn_mult"], config["hidden_size"]) == block["ffn"]["intermediate_size"]
        )
        assert own["mlp.gate_proj.weight"].shape[0] == block["ffn"]["intermediate_size"]
        for part, has in (("q_proj", "qkv_bias"), ("v_proj", "qkv_bias"), ("o_proj", "attention_bias")):
            assert (f"self_attn.{part}.bias" in own) is config[has]
        assert {f"mlp.{part}.bias" in own for part in ("gate_proj", "up_proj", "down_proj")} == {config["mlp_bias"]}
        normed = rms_norm(hidden, own["input_layernorm.weight"], config)
        hidden = hidden + attention(normed, own, config, block["attention"]["n_heads_in_group"], window_of(config, index))
        normed = rms_norm(hidden, own["post_attention_layernorm.weight"], config)
        hidden = hidden + project(silu(project(normed, own, "mlp.gate_proj")) * project(normed, own, "mlp.up_proj"), own, "mlp.down_proj")
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return linear(rms_norm(hidden, weights["model.norm.weight"], config), head)


def rounded(ffn_mult: float, hidden: int) -> int:
    """The width that engines make of ``ffn_mult``."""
    return math.ceil(int(2 * ffn_mult * hidden / 3) / 256) * 256


def project(x: Tensor, own: dict[str, Tensor], name: str) -> Tensor:
    return linear(x, own[f"{name}.weight"], own.get(f"{name}.bias"))


def rms_norm(x: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()


def window_of(config: dict[str, Any], layer: int) -> int | None:
    types = config.get("layer_types")
    return config["sliding_window"] if types and types[layer] == "sliding_attention" else None


def attention(x: Tensor, own: dict[str, Tensor], config: dict[str, Any], group: int, window: int | None) -> Tensor:
    """One number of query heads in every layer, of which ``group`` share a KV head."""
    heads, head_dim, (batch, length, _) = config["num_attention_heads"], config["head_dim"], x.shape
    rotary = config["rope_parameters"]
    angles = torch.arange(length).double()[:, None] * rotary["rope_theta"] ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    cosine, sine = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def split(name: str, count: int, turn: bool) -> Tensor:
        found = project(x, own, f"self_attn.{name}").view(batch, length, count, head_dim).transpose(1, 2)
        half = torch.cat((-found[..., head_dim // 2 :], found[..., : head_dim // 2]), -1)
        return found * cosine + half * sine if turn else found

    query = split("q_proj", heads, True)
    key, value = (split(name, heads // group, name == "k_proj").repeat_interleave(group, 1) for name in ("k_proj", "v_proj"))
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= (window or length))
    scores = (query @ key.transpose(-1, -2) / math.sqrt(head_dim)).masked_fill(hidden, -torch.inf).softmax(-1)
    return project((scores @ value).transpose(1, 2).flatten(2), own, "self_attn.o_proj")
