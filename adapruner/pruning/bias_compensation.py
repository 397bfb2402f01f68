"""FLAP's bias compensation: what removed units contributed on average comes back as a bias of the output projection.

    b <- b + W[:, removed] @ mean(x)[removed]

with W the dense weight of o_proj (down_proj) and x its input, so that over the calibration tokens the block's mean output
stays what it was (An et al., arXiv 2312.11983, baseline bias compensation). It helps on text like the calibration text and
may harm on other text: the switch is the plan's ``output_bias``, off by default.

The weights' columns are gone after the cut, so this runs inside it, layer by layer; see
:func:`adapruner.pruning.surgery.cut_layer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import DataError, PlanError
from adapruner.importance.statistics import UnitStatistics
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.plan import PruningPlan

#: What :func:`input_means` asks of :func:`adapruner.importance.statistics.collect_statistics`.
NEEDS: frozenset[str] = frozenset({"input_sum"})


def input_means(statistics: UnitStatistics, structure: ModelStructure, weights: Tensor) -> dict[str, Tensor]:
    """Group name -> ``[channels]`` float32: mean input of the dense model's output projection over the calibration tokens.

    Args:
        weights: ``[samples]``, non-negative: each calibration sample's weight.

    Raises:
        DataError: if the weights are not one per sample with a positive sum, or ``input_sum`` was not collected.
    """
    if weights.shape != statistics.tokens.shape or not bool((weights >= 0).all() & (weights.sum() > 0) & weights.isfinite().all()):
        raise DataError(
            f"weights: expected {statistics.samples} numbers, none negative, one above 0, got {_in_words(weights)}; give sample weights"
        )
    tokens, means = weights.float() @ statistics.tokens, {}
    for group in structure.groups:
        sums = statistics.inputs.get(("input_sum", group.name))
        if sums is None:
            raise DataError(f"statistics: expected 'input_sum' of {group.name}, got none; collect it for plans with output_bias")
        means[group.name] = weights.float() @ sums / tokens
    return means


def check_means(structure: ModelStructure, plan: PruningPlan, means: Mapping[str, Tensor]) -> None:
    """Refuses, before anything is cut, means that the plan has no bias for, or that do not fit its groups.

    Raises:
        PlanError: if the plan adds no biases.
        DataError: if a group that loses units has no finite means ``[channels]``.
    """
    if not plan.output_bias:
        raise PlanError("plan: expected output_bias to be true where means are given, got false; set it, or give no means")
    for group in structure.groups:
        if plan.keeps_all(group):
            continue
        mean = means.get(group.name)
        if mean is None or mean.shape != (group.channels,) or not bool(torch.isfinite(mean).all()):
            raise DataError(
                f"means: expected {group.channels} finite numbers of {group.name}, got {_in_words(mean)}; use input_means of this model"
            )


def add_output_bias(linear: nn.Linear, group: UnitGroup, kept: list[int], mean: Tensor | None) -> None:
    """Gives a dense output projection a bias, if it has none, and adds the removed units' mean contribution to it.

    The sum is made in float32 at least and rounded once to the bias's type. A bias that is there is replaced by a new
    parameter, never written to: it may be the dense model's own, which comes back after a trial.

    Args:
        linear: the output projection, weight ``[hidden, channels]``, still dense.
        kept: units that stay.
        mean: ``[channels]``; ``None`` adds nothing.
    """
    weight, old = linear.weight, linear.bias
    compensated = mean is not None and len(kept) < group.units
    if old is not None and not compensated:
        return
    with torch.no_grad():
        bias = weight.new_zeros(weight.shape[0]) if old is None else old.detach()
        if mean is not None and compensated:
            wide = torch.promote_types(weight.dtype, torch.float32)
            removed = mean.to(weight.device, wide, copy=True)
            removed[group.channels_of(kept).to(weight.device)] = 0.0
            # One pass over the whole matrix costs less than gathering the removed columns first.
            bias = (bias.to(wide) + weight.to(wide) @ removed).to(bias.dtype)
    linear.bias = nn.Parameter(bias, requires_grad=(weight if old is None else old).requires_grad)


def count_added_biases(model: nn.Module, structure: ModelStructure) -> int:
    """Parameters that ``output_bias`` adds to the dense model: one bias per output projection that has none."""
    outputs: list[Any] = [model.get_submodule(group.output.module) for group in structure.groups]
    return sum(len(linear.weight) for linear in outputs if linear.bias is None)


def _in_words(values: Tensor | None) -> str:
    if values is None:
        return "none"
    extent = f", from {values.min().item():g} to {values.max().item():g}" if values.numel() else ""
    return f"shape {tuple(values.shape)}{extent}"
