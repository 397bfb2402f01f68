"""The widths of layers that keep certain units, the attributes that their forwards read beside their tensors, models at such widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adapruner.models.families import LayerShape, family_of
from adapruner.models.families.modeling_adapruner import PrunedLayers, set_attributes
from adapruner.models.units import Kind, ModelStructure, UnitGroup


def layer_shape(groups: Mapping[Kind, UnitGroup], kept: Mapping[Kind, list[int]]) -> LayerShape:
    """The shape of a layer whose groups keep these units; a kind that is not there counts as 0."""
    attention, ffn = groups.get("attention"), groups.get("ffn")
    heads: list[int] = []
    key_value_heads = 0
    if attention is not None:
        heads = [int(c) // attention.head_dim for c in attention.channels_of(kept["attention"])[:: attention.head_dim]]
        heads = [attention.head_numbers[h] for h in heads] if attention.head_numbers else heads
        key_value_heads = attention.key_value_heads if attention.query_head_units else len(kept["attention"])
    channels, experts = (0, 0) if ffn is None else _ffn_widths(ffn, len(kept["ffn"]))
    head_dim = 0 if attention is None else attention.head_dim
    return LayerShape(len(heads), key_value_heads, head_dim, channels, tuple(heads), experts)


def whole_shape(structure: ModelStructure, layer: int) -> LayerShape:
    """The shape of a layer that keeps all its units."""
    groups: dict[Kind, UnitGroup] = {g.kind: g for g in structure.of_layer(layer)}
    return layer_shape(groups, {kind: list(range(g.units)) for kind, g in groups.items()})


def _ffn_widths(ffn: UnitGroup, kept: int) -> tuple[int, int]:
    """Channels of the FFN, or of one expert, and the number of experts, which is 0 where there is no mixture."""
    if ffn.expert_units:
        return ffn.channels_per_unit, kept
    return kept * ffn.channels_per_unit // ffn.sets, 0 if ffn.sets == 1 else ffn.sets


def layer_attributes(config: Any, structure: ModelStructure, layer: int, kept: Mapping[str, list[int]]) -> dict[str, dict[str, Any]]:
    """Module inside the layer -> attribute -> value, for a layer that keeps ``kept`` (group name -> units).

    ``num_key_value_groups``, which the attention of most families repeats keys by, is given where single query heads go or are gone.
    """
    groups: dict[Kind, UnitGroup] = {g.kind: g for g in structure.of_layer(layer)}
    shape = layer_shape(groups, {kind: kept[g.name] for kind, g in groups.items()})
    attention = groups.get("attention")
    found = {name: dict(values) for name, values in family_of(structure.model_type).attributes(config, shape).items()}
    if attention is None:
        return {name: values for name, values in found.items() if not name.startswith(("attn", "self_attn", "self_attention"))}
    whole = structure.configured
    if attention.query_head_units or shape.query_heads * whole.key_value_heads != whole.query_heads * shape.key_value_heads:
        module = attention.output.module.split(f".{layer}.", 1)[1].rpartition(".")[0]
        found.setdefault(module, {})["num_key_value_groups"] = shape.query_heads // shape.key_value_heads
    return found


def is_narrower(structure: ModelStructure) -> bool:
    """Whether some layer has other widths than the configuration says."""
    return any(whole_shape(structure, layer) != structure.configured for layer in range(structure.layers))


def narrow_to(model: Any, structure: ModelStructure) -> None:
    """Cuts a model of the configuration's widths, in place, to those of a structure: the first rows and columns of each tensor stay.

    The model is put into the linear form of its family. Biases that the structure's output projections have besides are zero.

    Args:
        model: as the configuration builds it, on any device, the meta device included.
        structure: with names of the model's modules.
    """
    family_of(structure.model_type).linear_form(model)
    for group in structure.groups:
        for module, dim in dict.fromkeys((m.module, m.dim) for m in (*group.members, *group.staying)):
            _keep_first(model.get_submodule(module), dim, group.size(module))
        output = model.get_submodule(group.output.module)
        if output.bias is None and group.added_bias:
            output.bias = nn.Parameter(output.weight.new_zeros(output.weight.shape[0]))
        if group.kind == "ffn" and group.sets > 1:
            _keep_first(model.get_submodule(f"{group.output.module.rpartition('.experts.')[0]}.gate.router"), 0, group.sets)
    whole = {group.name: list(range(group.units)) for group in structure.groups}
    for layer in range(structure.layers):
        if whole_shape(structure, layer) != structure.configured:
            path = structure.of_layer(layer)[0].output.module.split(f".{layer}.", 1)[0]
            found = layer_attributes(model.config, structure, layer, whole)
            set_attributes(model, {f"{path}.{layer}.{inside}": values for inside, values in found.items()})


def _keep_first(linear: Any, dim: int, size: int) -> None:
    if linear.weight.shape[dim] == size:
        return
    linear.weight = nn.Parameter(linear.weight.detach().narrow(dim, 0, size).clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:size].clone())


def stock_class(model_class: Any) -> Any:
    """The class of transformers behind one of ours, also where a folder's own copy of this file made it; any other is itself."""
    return next(c for c in model_class.__mro__ if not any(base.__name__ == PrunedLayers.__name__ for base in c.__mro__))


def clear_layer_widths(config: Any) -> None:
    """Takes out of a configuration, in place, what it says of single layers: what is left is what the stock class builds."""
    for name in ("pruned_shapes", "pruned_attributes"):
        config.__dict__.pop(name, None)
    config.per_layer_config = None
