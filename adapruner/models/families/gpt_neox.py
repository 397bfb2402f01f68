"""GPT-NeoX and Pythia (Black et al., arXiv 2204.06745): each head's q, k and v lie side by side in one layer."""

from typing import Any

from adapruner.models.families.family import Family, IndexMap, register_family
from adapruner.models.families.index_maps import head_dim_of, interleaved_qkv


def _qkv(config: Any) -> IndexMap:
    return interleaved_qkv("attention.query_key_value", config.num_attention_heads, head_dim_of(config))


register_family(
    Family(
        "gpt_neox",
        outputs={"attention.dense": "attention", "mlp.dense_4h_to_h": "ffn"},
        maps={"attention": _qkv},
        head_counts=False,
    )
)
