"""Falcon (arXiv 2311.16867): three ways to lay out q, k and v; with several KV groups, one, or one per head."""

from typing import Any

from adapruner.models.families.family import Family, IndexMap, LayerShape, register_family
from adapruner.models.families.index_maps import grouped_qkv, head_dim_of, interleaved_qkv, stacked_qkv
from adapruner.models.kinds import Kind

_FUSED = "self_attention.query_key_value"


def _qkv(config: Any) -> IndexMap:
    heads, dim = config.num_attention_heads, head_dim_of(config)
    if config.new_decoder_architecture:
        return grouped_qkv(_FUSED, config.num_kv_heads, heads // config.num_kv_heads, dim)
    return stacked_qkv(_FUSED, heads, 1, dim) if config.multi_query else interleaved_qkv(_FUSED, heads, dim)


def _attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    return {"self_attention": {"num_heads": shape.query_heads, "num_kv_heads": shape.key_value_heads}}


def _unprunable(config: Any) -> dict[Kind, str]:
    return {"attention": "its ALiBi slopes are made for all heads"} if config.alibi else {}


register_family(
    Family(
        "falcon",
        outputs={"self_attention.dense": "attention", "mlp.dense_4h_to_h": "ffn"},
        maps={"attention": _qkv},
        attributes=_attributes,
        unprunable=_unprunable,
        ffn_name="ffn_hidden_size",
        head_counts=False,
    )
)
