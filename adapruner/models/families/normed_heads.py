"""Families that normalise queries and keys over all heads at once: a removed head would change what is left of the others.

OLMo 2 (arXiv 2501.00656) and OLMo 3 always do; Cohere and StableLM have weights of their own per head, with a switch.
"""

from typing import Any

from adapruner.models.families.family import Family, LayerShape, register_family
from adapruner.models.kinds import Kind

_OVER_ALL = "its norm of queries and keys runs over all heads"
_PER_HEAD = "its norms of queries and keys have weights for each head"


def _always(config: Any) -> dict[Kind, str]:
    return {"attention": _OVER_ALL}


def _with_switch(name: str) -> Any:
    return lambda config: {"attention": _PER_HEAD} if getattr(config, name, False) else {}


def _stablelm_attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    return {"self_attn": {"num_heads": shape.query_heads, "num_key_value_heads": shape.key_value_heads}}


register_family(Family("olmo2", unprunable=_always))
register_family(Family("olmo3", unprunable=_always))
register_family(Family("cohere", unprunable=_with_switch("use_qk_norm")))
register_family(Family("stablelm", attributes=_stablelm_attributes, unprunable=_with_switch("qk_layernorm"), head_counts=False))
register_family(
    Family("phi", outputs={"self_attn.dense": "attention", "mlp.fc2": "ffn"}, unprunable=_with_switch("qk_layernorm"), head_counts=False)
)
