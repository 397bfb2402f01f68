"""Mixtures whose experts are narrower than they were: which implementation of transformers runs them."""

from __future__ import annotations

from typing import Any


def has_uneven_experts(config: Any) -> bool:
    """Whether experts have widths that transformers' grouped product, which wants multiples of 16 bytes, cannot take."""
    if not (getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)):
        return False
    shapes = [shape for name, shape in (getattr(config, "pruned_shapes", None) or {}).items() if name.endswith("experts.down_proj")]
    width = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 8)
    return any(w % 8 for w in ([shape[-1] for shape in shapes] or [width]))
