"""Cuts a model down to a plan, in place, and for good; or for the length of a ``with`` block.

Both go through one function that slices every coupled tensor once, by the union of kept positions. torch-pruning's own
``prune`` checks nothing (out-of-range or repeated indices corrupt silently), so the cutting is ours and every shape is
checked afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.anatomy.units import Member, ModelAnatomy, UnitGroup
from adapruner.errors import ModelError, PlanError
from adapruner.pruning.bias_compensation import add_output_bias, check_means
from adapruner.pruning.plan import PruningPlan


def prune_model(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan, means: Mapping[str, Tensor] | None = None) -> None:
    """Removes, in place, every unit the plan does not keep.

    Weights become new, contiguous parameters that require gradients as the old ones did; the configuration gets the new
    widths where they are the same in all layers. Biases that the plan adds are the export's matter there.

    Args:
        means: group name -> ``[channels]``, what :func:`adapruner.pruning.bias_compensation.input_means` gives; for a plan
            with ``output_bias`` only. Without them the biases it adds are zero, to be loaded or trained.

    Raises:
        PlanError: if the plan was made for a model with other groups, or empties a layer, or adds no bias for the means.
        DataError: if a group that loses units has no finite means of its channels.
        ModelError: if a module is not the dense linear layer that the anatomy describes.
    """
    check_plan(anatomy, plan, means)
    for layer in range(anatomy.layers):
        cut_layer(model, anatomy, plan, layer, means)
    write_widths(model.config, anatomy, plan)


@contextmanager
def pruned(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan, means: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
    """The model at the plan's widths inside the block; the dense tensors themselves come back afterwards.

    This is what a search trial evaluates: the cost of a forward pass at the pruned widths and a copy of the kept slices,
    never a copy of the model. ``means`` and errors as in :func:`prune_model`.
    """
    check_plan(anatomy, plan, means)
    with restored(model, anatomy):
        for layer in range(anatomy.layers):
            cut_layer(model, anatomy, plan, layer, means)
        yield model


@contextmanager
def restored(model: nn.Module, anatomy: ModelAnatomy) -> Iterator[nn.Module]:
    """Puts every coupled tensor back as it was, whatever the block did to the linear layers; an added bias goes."""
    linears: list[Any] = [model.get_submodule(m.module) for g in anatomy.groups for m in g.members]
    saved = [(linear, linear.weight, linear.bias, linear.in_features, linear.out_features) for linear in linears]
    try:
        yield model
    finally:
        for linear, weight, bias, inputs, outputs in saved:
            linear.weight, linear.bias, linear.in_features, linear.out_features = weight, bias, inputs, outputs


def check_plan(anatomy: ModelAnatomy, plan: PruningPlan, means: Mapping[str, Tensor] | None = None) -> None:
    """Refuses, before anything is cut, a plan for other groups or one that empties a layer, and means it has no use for.

    Raises:
        PlanError: in these cases.
        DataError: if a group that loses units has no finite means of its channels.
    """
    plan.check(anatomy)
    for group in anatomy.groups:
        if not plan.kept[group.name]:
            raise PlanError(f"plan: expected at least one unit to stay in group {group.name}, got none; prune less, or protect the layer")
    if means is not None:
        check_means(anatomy, plan, means)


def cut_layer(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan, layer: int, means: Mapping[str, Tensor] | None = None) -> None:
    """Removes, in place, what the plan removes of one decoder layer; the configuration is not touched.

    With ``plan.output_bias`` the layer's output projections get a bias first, and with ``means`` (checked by
    :func:`check_plan`, see :func:`prune_model`) what the removed units contributed on average is added to it.
    """
    for group in anatomy.groups:
        if group.layer != layer:
            continue
        kept = plan.kept[group.name]
        if plan.output_bias:  # while the removed columns are still there
            add_output_bias(_dense_linear(model, group.output), group, kept, None if means is None else means.get(group.name))
        if not plan.keeps_all(group):
            _cut_group(model, group, kept)


def _cut_group(model: nn.Module, group: UnitGroup, kept: list[int]) -> None:
    channels = group.channels_of(kept)
    for member in group.members:
        _cut_linear(_dense_linear(model, member), member.positions(channels), member.dim)


def _dense_linear(model: nn.Module, member: Member) -> nn.Linear:
    linear = model.get_submodule(member.module)
    if not isinstance(linear, nn.Linear):
        raise ModelError(
            f"model: expected {member.module} to be a linear layer, got {type(linear).__name__}; prune before adapters are attached"
        )
    if int(member.index.max()) >= linear.weight.shape[member.dim]:
        raise ModelError(f"model: expected {member.module} to be dense, got shape {tuple(linear.weight.shape)}; it is already pruned")
    return linear


def _cut_linear(linear: nn.Linear, positions: Tensor, dim: int) -> None:
    positions = positions.to(linear.weight.device)
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


def write_widths(config: Any, anatomy: ModelAnatomy, plan: PruningPlan) -> None:
    """Uniform widths go into the configuration; irregular ones stay as they are and are the export's matter."""
    attention, ffn = plan.widths("attention"), plan.widths("ffn")
    if attention and len(set(attention)) == 1:
        per_unit = config.num_attention_heads // anatomy.group(0, "attention").units
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.head_dim = head_dim  # no longer hidden_size / heads
        config.num_key_value_heads = attention[0]
        config.num_attention_heads = attention[0] * per_unit
    if ffn and len(set(ffn)) == 1:
        config.intermediate_size = ffn[0]
