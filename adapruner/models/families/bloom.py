"""BLOOM (arXiv 2211.05100): interleaved q, k, v; ALiBi's slopes belong to heads, so those of the kept heads have to stay."""

from typing import Any

from adapruner.models.families.family import Family, IndexMap, LayerShape, register_family
from adapruner.models.families.index_maps import head_dim_of, interleaved_qkv


def _qkv(config: Any) -> IndexMap:
    return interleaved_qkv("self_attention.query_key_value", config.num_attention_heads, head_dim_of(config))


def _attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    return {"self_attention": {"num_heads": shape.query_heads, "alibi_heads": list(shape.kept_heads)}}


register_family(
    Family(
        "bloom",
        outputs={"self_attention.dense": "attention", "mlp.dense_4h_to_h": "ffn"},
        maps={"attention": _qkv},
        attributes=_attributes,
        ffn_name=None,  # always 4 * hidden_size there
        head_counts=False,
    )
)
