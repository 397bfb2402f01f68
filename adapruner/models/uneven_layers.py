"""Models that were pruned before, whose layers have widths of their own: each layer is traced at the widths that it has."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from adapruner.errors import ModelError
from adapruner.models.families import Family
from adapruner.models.families.index_maps import head_dim_of

SHAPES = "pruned_shapes"
"""In the configuration of such a model: tensor name -> shape, where it is not what the stock class builds."""
_OF_AN_EXPORT = (SHAPES, "pruned_attributes", "per_layer_config", "allow_global_per_layer_attribute_access", "auto_map")


def is_uneven(model: Any) -> bool:
    """Whether a model's configuration lists tensors of widths of their own, as that of an export does."""
    return bool(getattr(model.config, SHAPES, None))


def shapes_of(layer: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of every tensor of a layer: layers that have the same are traced once."""
    return tuple((name, tuple(tensor.shape)) for name, tensor in layer.state_dict().items())


def stock_config(config: Any) -> Any:
    """The configuration without the widths of single layers."""
    values = {key: value for key, value in config.to_dict().items() if key not in (*_OF_AN_EXPORT, "model_type", "architectures")}
    plain = type(config)(**values)
    plain.pruned_shapes, plain.pruned_attributes = {}, {}
    return plain


def put_layer(one_layer: Any, real: Any, path: str) -> None:
    """Makes a layer of a real model, on the meta device, the only one of a one-layer model.

    Raises:
        ModelError: if it has biases that the stock class has not, or picks single heads of ALiBi.
    """
    stock = one_layer.get_submodule(f"{path}.0")
    biased = {name for name, _ in stock.named_parameters() if name.endswith(".bias")}
    added = [name for name, _ in real.named_parameters() if name.endswith(".bias") and name not in biased]
    if added or any(getattr(module, "alibi_heads", None) is not None for module in real.modules()):
        got = f"a bias {added[0]} that the first pruning added" if added else "single heads of ALiBi"
        raise ModelError(f"model: expected an export that can be pruned again, got {got}; prune the dense model by a larger budget")
    memo: dict[int, Any] = {}
    for tensor in [*real.parameters(), *real.buffers()]:
        empty = torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
        memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    layer = copy.deepcopy(real, memo)
    for module in layer.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    one_layer.get_submodule(path)[0] = layer


def write_counts(one_layer: Any, family: Family, roots: dict[Any, tuple[str, Any]]) -> None:
    """The head counts and the FFN's width of the only layer, into its configuration, which index maps are worked out from."""
    config = one_layer.config
    if "attention" in roots:
        name, output = roots["attention"]
        head_dim, ratio = head_dim_of(config), _key_value_heads(config) / config.num_attention_heads
        heads = output.in_features // head_dim
        around = name.rpartition(".")[0]
        keys = next((m for n, m in one_layer.named_modules() if n.endswith(f"0.{around}.k_proj")), None)
        counts = {"num_attention_heads": heads, "head_dim": head_dim}
        groups = round(heads * ratio) if keys is None else keys.out_features // head_dim
        counts |= {name: groups for name in ("num_key_value_heads", "num_kv_heads") if getattr(config, name, None)}
        for key, value in counts.items():
            setattr(config, key, value)
    if "ffn" in roots and family.ffn_name and getattr(roots["ffn"][1], "sets", 1) == 1:
        setattr(config, family.ffn_name, roots["ffn"][1].in_features)


def _key_value_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or config.num_attention_heads)
