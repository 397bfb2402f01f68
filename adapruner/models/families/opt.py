"""OPT (Zhang et al., arXiv 2205.01068): no gates, biases everywhere, the number of heads is read from an attribute."""

from typing import Any

from adapruner.models.families.family import Family, LayerShape, register_family


def _attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    return {"self_attn": {"num_heads": shape.query_heads}}


register_family(
    Family(
        "opt",
        outputs={"self_attn.out_proj": "attention", "fc2": "ffn"},
        attributes=_attributes,
        ffn_name="ffn_dim",
        head_counts=False,  # head_dim is hidden_size / heads there
    )
)
