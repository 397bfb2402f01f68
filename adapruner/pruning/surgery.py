"""Cuts a model down to a plan, in place, and for good; or for the length of a ``with`` block.

Both go through one function that slices every coupled tensor once, by the union of kept positions. torch-pruning's own
``prune`` checks nothing (out-of-range or repeated indices corrupt silently), so the cutting is ours and every shape is
checked afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import ModelError, PlanError
from adapruner.models.families import LayerShape, family_of
from adapruner.models.families.modeling_adapruner import set_attributes
from adapruner.models.shapes import clear_layer_widths, layer_attributes, layer_shape
from adapruner.models.tracing import find_decoder_layers
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.bias_compensation import add_output_bias, check_means
from adapruner.pruning.depth_and_width import DepthWidthCut, apply_depth_and_width, check_depth_and_width, depth_and_width_removed
from adapruner.pruning.plan import PruningPlan


def prune_model(model: nn.Module, structure: ModelStructure, plan: PruningPlan, means: Mapping[str, Tensor] | None = None) -> None:
    """Removes, in place, every unit the plan does not keep, then the hidden channels and whole layers that it takes out.

    Weights become new, contiguous parameters that require gradients as the old ones did; the configuration gets the new
    widths where they are the same in all layers. Biases that the plan adds are the export's matter there.

    Args:
        means: group name -> ``[channels]``, what :func:`adapruner.pruning.bias_compensation.input_means` gives; for a plan
            with ``output_bias`` only. Without them the biases it adds are zero, to be loaded or trained.

    Raises:
        PlanError: if the plan was made for a model with other groups, or empties a layer, or adds no bias for the means.
        DataError: if a group that loses units has no finite means of its channels.
        ModelError: if a module is not the dense linear layer that the structure describes, or the family cannot do without the
            layers or hidden channels.
    """
    check_plan(structure, plan, means)
    check_depth_and_width(model, DepthWidthCut.of(plan))
    for layer in range(structure.layers):
        cut_layer(model, structure, plan, layer, means)
    write_widths(model.config, structure, plan)
    apply_depth_and_width(model, DepthWidthCut.of(plan))


@contextmanager
def pruned(
    model: nn.Module, structure: ModelStructure, plan: PruningPlan, means: Mapping[str, Tensor] | None = None
) -> Iterator[nn.Module]:
    """The model at the plan's widths inside the block; the dense tensors themselves come back afterwards.

    This is what a search trial evaluates: the cost of a forward pass at the pruned widths and a copy of the kept slices,
    never a copy of the model. ``means`` and errors as in :func:`prune_model`.
    """
    check_plan(structure, plan, means)
    check_depth_and_width(model, DepthWidthCut.of(plan))
    with restored(model, structure):
        for layer in range(structure.layers):
            cut_layer(model, structure, plan, layer, means)
        with depth_and_width_removed(model, DepthWidthCut.of(plan)):
            yield model


@contextmanager
def restored(model: nn.Module, structure: ModelStructure) -> Iterator[nn.Module]:
    """Puts every coupled tensor back as it was, whatever the block did to the linear layers; an added bias goes."""
    put_back = remember_layers(model, structure, range(structure.layers))
    try:
        yield model
    finally:
        put_back()


def remember_layers(model: nn.Module, structure: ModelStructure, layers: range) -> Callable[[], None]:
    """Puts the coupled tensors of these decoder layers back as they are now, each time it is called."""
    linears: list[Any] = [model.get_submodule(module) for g in structure.groups if g.layer in layers for module, _ in g.tensors]
    saved = [(linear, linear.weight, linear.bias, linear.in_features, linear.out_features) for linear in linears]
    attributes = _attributes_now(model, structure, layers)

    def put_back() -> None:
        for module, name, value in attributes:
            setattr(module, name, value)
        for linear, weight, bias, inputs, outputs in saved:
            linear.weight, linear.bias, linear.in_features, linear.out_features = weight, bias, inputs, outputs

    return put_back


def _attributes_now(model: Any, structure: ModelStructure, layers: range) -> list[tuple[Any, str, Any]]:
    """(module, attribute, value) of all that :func:`cut_layer` sets; what is only set for pruned layers is None."""
    path, _ = find_decoder_layers(model)
    found = []
    for layer in layers:
        kept = {g.name: list(range(g.units)) for g in structure.of_layer(layer)}
        for inside, values in layer_attributes(model.config, structure, layer, kept).items():
            module = model.get_submodule(f"{path}.{layer}.{inside}")
            names = {"config" if name.startswith("config.") else name for name in values}
            found += [(module, name, getattr(module, name, None)) for name in names]
    return found


def check_plan(structure: ModelStructure, plan: PruningPlan, means: Mapping[str, Tensor] | None = None) -> None:
    """Refuses, before anything is cut, a plan for other groups or one that empties a layer, and means it has no use for.

    Raises:
        PlanError: in these cases.
        DataError: if a group that loses units has no finite means of its channels.
    """
    plan.check(structure)
    for group in structure.groups:
        if not plan.kept[group.name]:
            raise PlanError(f"plan: expected at least one unit to stay in group {group.name}, got none; prune less, or protect the layer")
        if len(plan.kept[group.name]) < group.at_least:
            raise PlanError(
                f"plan: expected at least {group.at_least} experts to stay in group {group.name}, as many as a token chooses, "
                f"got {len(plan.kept[group.name])}; prune less, or protect the layer"
            )
        counts = torch.bincount(torch.tensor(plan.kept[group.name]) // (group.units // group.sets), minlength=group.sets)
        if int(counts.min()) != int(counts.max()):
            raise PlanError(
                f"plan: expected equally many units to stay in each of the {group.sets} sets of group {group.name}, got {counts.tolist()}; "
                "search again"
            )
    mixture = next((g for g in structure.groups if g.expert_units or (g.kind == "ffn" and g.sets > 1)), None)
    if plan.output_bias and mixture is not None:
        raise PlanError(
            f"plan: expected no output_bias for a mixture of experts (group {mixture.name}), got true; prune without bias_compensation"
        )
    if means is not None:
        check_means(structure, plan, means)


def cut_layer(
    model: nn.Module, structure: ModelStructure, plan: PruningPlan, layer: int, means: Mapping[str, Tensor] | None = None
) -> None:
    """Removes, in place, what the plan removes of one decoder layer; the configuration is not touched.

    With ``plan.output_bias`` the layer's output projections get a bias first, and with ``means`` (checked by
    :func:`check_plan`, see :func:`prune_model`) what the removed units contributed on average is added to it.
    """
    groups = structure.of_layer(layer)
    for group in groups:
        kept = plan.kept[group.name]
        if plan.output_bias:  # while the removed columns are still there
            output = _dense_linear(model, group, group.output.module, 1)
            add_output_bias(output, group, kept, None if means is None else means.get(group.name))
        if not plan.keeps_all(group):
            _cut_group(model, group, kept)
    if any(not plan.keeps_all(group) for group in groups):
        set_attributes(model, attributes_when_cut(model, structure, plan, layer))


def attributes_when_cut(model: nn.Module, structure: ModelStructure, plan: PruningPlan, layer: int) -> dict[str, dict[str, Any]]:
    """Dotted module -> what its attributes are once the layer is cut."""
    path, _ = find_decoder_layers(model)
    attributes = layer_attributes(model.config, structure, layer, plan.kept)
    return {f"{path}.{layer}.{inside}": values for inside, values in attributes.items()}


def _cut_group(model: nn.Module, group: UnitGroup, kept: list[int]) -> None:
    for linear, positions, dim in kept_slices(model, group, kept):
        cut_linear(linear, positions, dim)


def kept_slices(model: nn.Module, group: UnitGroup, kept: list[int]) -> Iterator[tuple[nn.Linear, Tensor, int]]:
    """(Linear layer, positions that stay, dimension) of every coupled tensor."""
    channels = group.channels_of(kept)
    for module, dim in group.tensors:
        linear = _dense_linear(model, group, module, dim)
        yield linear, group.positions(module, channels).to(linear.weight.device), dim


def _dense_linear(model: nn.Module, group: UnitGroup, module: str, dim: int) -> nn.Linear:
    linear = model.get_submodule(module)
    if not isinstance(linear, nn.Linear):
        raise ModelError(f"model: expected {module} to be a linear layer, got {type(linear).__name__}; prune before adapters are attached")
    if max(int(m.index.max()) for m in group.members if m.module == module) >= linear.weight.shape[dim]:
        raise ModelError(f"model: expected {module} to be whole, got shape {tuple(linear.weight.shape)}; it is already pruned")
    return linear


def cut_linear(linear: nn.Linear, positions: Tensor, dim: int) -> None:
    """Leaves the rows (``dim`` 0) or columns at these positions, on the layer's device, in new parameters."""
    linear.weight = _cut_parameter(linear.weight, positions, dim)
    if dim == 0:
        linear.out_features = len(positions)
        if linear.bias is not None:
            linear.bias = _cut_parameter(linear.bias, positions, 0)
    else:
        linear.in_features = len(positions)
    if tuple(linear.weight.shape) != (linear.out_features, linear.in_features):
        raise ModelError(
            f"surgery: expected weight shape {(linear.out_features, linear.in_features)}, got {tuple(linear.weight.shape)}; report this"
        )


def _cut_parameter(parameter: Tensor, positions: Tensor, dim: int) -> nn.Parameter:
    with torch.no_grad():
        return nn.Parameter(parameter.index_select(dim, positions).contiguous(), requires_grad=parameter.requires_grad)


def write_widths(config: Any, structure: ModelStructure, plan: PruningPlan) -> None:
    """Uniform widths go into the configuration where the family has names for them; irregular ones are the export's matter.

    What an earlier export said there of single layers is no longer so.
    """
    clear_layer_widths(config)
    family = family_of(structure.model_type)
    shapes = [plan_shape(structure, plan, layer) for layer in range(structure.layers) if layer not in plan.removed_layers]
    first = shapes[0]
    heads = {(s.query_heads, s.key_value_heads) for s in shapes}
    if first.query_heads and len(heads) == 1 and family.head_counts:
        config.head_dim = first.head_dim  # no longer hidden_size / heads
        config.num_attention_heads = first.query_heads
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = first.key_value_heads
    if first.ffn and len({s.ffn for s in shapes}) == 1 and family.ffn_name:
        setattr(config, family.ffn_name, first.ffn)
    if first.experts and len({s.experts for s in shapes}) == 1 and family.experts_name:
        setattr(config, family.experts_name, first.experts)


def plan_shape(structure: ModelStructure, plan: PruningPlan, layer: int) -> LayerShape:
    """The widths of one layer under a plan; 0 for a kind the structure does not have."""
    groups = {g.kind: g for g in structure.of_layer(layer)}
    return layer_shape(groups, {kind: plan.kept[g.name] for kind, g in groups.items()})
