"""Switches units off without touching a weight: zeros at the input of the output projections.

Slower than :func:`adapruner.pruning.surgery.pruned` and obvious: the reference the fast path is tested against, and the
gate (m_u in method.md) that Taylor scores differentiate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.anatomy.units import ModelAnatomy, UnitGroup
from adapruner.pruning.plan import PruningPlan


@contextmanager
def masked(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> Iterator[nn.Module]:
    """The dense model with every removed unit's contribution set to zero inside the block."""
    plan.check(anatomy)
    with ExitStack() as hooks:
        for group in anatomy.groups:
            if not plan.keeps_all(group):
                linear = model.get_submodule(group.output.module)
                handle = linear.register_forward_pre_hook(_zero_channels(channel_mask(group, plan.kept[group.name])))
                hooks.callback(handle.remove)
        yield model


def channel_mask(group: UnitGroup, kept: list[int]) -> Tensor:
    """``[channels]`` float32: 1 where the channel's unit stays, else 0."""
    mask = torch.zeros(group.channels)
    mask[group.channels_of(kept)] = 1.0
    return mask


def _zero_channels(mask: Tensor) -> Any:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        return (states * mask.to(states.device, states.dtype), *arguments[1:])

    return hook
