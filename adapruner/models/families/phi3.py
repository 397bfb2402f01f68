"""Phi-3 (arXiv 2404.14219) and its kin: q, k, v in one layer, gate and up in another; widths are read from attributes."""

from typing import Any

from adapruner.models.families.family import Family, IndexMap, LayerShape, register_family
from adapruner.models.families.index_maps import head_dim_of, stacked_gate_up, stacked_qkv


def _qkv(config: Any) -> IndexMap:
    return stacked_qkv("self_attn.qkv_proj", config.num_attention_heads, config.num_key_value_heads, head_dim_of(config))


def _gate_up(config: Any) -> IndexMap:
    return stacked_gate_up("mlp.gate_up_proj", config.intermediate_size)


def _attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    return {"self_attn": {"num_key_value_heads": shape.key_value_heads, "config.num_attention_heads": shape.query_heads}}


register_family(Family("phi3", maps={"attention": _qkv, "ffn": _gate_up}, attributes=_attributes))
register_family(Family("glm4", maps={"ffn": _gate_up}))
