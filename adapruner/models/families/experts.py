"""Mixtures of experts: Mixtral (arXiv 2401.04088), Qwen2-MoE and Qwen3-MoE (arXiv 2505.09388), OLMoE (arXiv 2409.02060).

They are pruned in the wide form of :mod:`adapruner.models.families.wide_experts`: channels, equally many of each expert, or whole
experts. Qwen2-MoE's shared expert stays whole.
"""

from collections.abc import Callable
from typing import Any

from adapruner.models.families.family import Family, IndexMap, LayerShape, MappedRows, register_family
from adapruner.models.families.wide_experts import stack_experts, widen_experts


def _gate_up(width: str) -> Callable[[Any], IndexMap]:
    def rows(config: Any) -> IndexMap:
        channels = tuple(range(config.num_experts * getattr(config, width)))
        return {"gate_proj": MappedRows("mlp.experts.wide_gate", channels), "up_proj": MappedRows("mlp.experts.wide_up", channels)}

    return rows


def _attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    """For the stock class; the wide form reads it off the router."""
    return {"mlp.experts": {"num_experts": shape.experts}} if shape.experts else {}


def _mixture(model_type: str, width: str, experts: str) -> Family:
    return Family(
        model_type,
        outputs={"self_attn.o_proj": "attention", "mlp.experts.wide_down": "ffn"},
        maps={"ffn": _gate_up(width)},
        attributes=_attributes,
        linear_form=widen_experts,
        stock_state=stack_experts,
        ffn_name=width,
        experts_name=experts,
    )


register_family(_mixture("mixtral", "intermediate_size", "num_local_experts"))
register_family(_mixture("qwen2_moe", "moe_intermediate_size", "num_experts"))
register_family(_mixture("qwen3_moe", "moe_intermediate_size", "num_local_experts"))
register_family(_mixture("olmoe", "intermediate_size", "num_experts"))
