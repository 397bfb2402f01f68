"""Scores that expect a refit: what removing a unit costs once the others are refitted in its place.

With C = E[x x^T] of an output projection's inputs, over all calibration tokens alike and damped by ``DAMPING`` of its mean
diagonal, and S the channels of one unit, the least error of a refit without S is larger by

    tr(W_S ((C^-1)_SS)^-1 W_S^T)

which for a single channel is ||w_j||^2 / (C^-1)_jj (optimal brain surgeon; ZipLM, arXiv 2302.04089, equation 4; SlimGPT,
arXiv 2412.18110). It is not a sum over samples, so it is collected for all of them alike. The Gram matrices of as many layers
at a time as :mod:`adapruner.importance.layer_runs` allows are in memory; the first such run shares the pass that is made anyway, and
every further one costs a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import ModelError
from adapruner.importance.moments import InputMoments
from adapruner.models.sequences import in_sequences
from adapruner.models.units import ModelStructure, UnitGroup

#: Names under which scores are kept in ``UnitStatistics.weights``.
REFIT_STATISTICS: tuple[str, ...] = ("obs",)
#: Added to the diagonal, relative to its mean: channels that other channels reproduce exactly keep a finite inverse.
DAMPING = 0.01


class InverseGrams:
    """Accumulates C for the output projections of some layers and turns it into scores."""

    def __init__(self, structure: ModelStructure, layers: range) -> None:
        self.groups = [g for g in structure.groups if g.layer in layers]
        self.rows: dict[tuple[str, str], Tensor] = {}
        """(``obs``, module name) -> ``[channels]`` float32 on the CPU, once reduced."""
        self._moments: dict[str, InputMoments] = {}

    def hook(self, model: nn.Module, token_mask: Callable[[], Tensor]) -> Iterator[Any]:
        """Registers the hooks; the caller removes the handles. ``token_mask`` gives the running batch's ``[batch, seq_len]``."""
        for group in self.groups:
            yield model.get_submodule(group.output.module).register_forward_pre_hook(self._on_input(group, token_mask))

    def reduce(self, model: nn.Module) -> None:
        """Turns what was accumulated into scores and frees it."""
        for group in self.groups:
            weight: Any = model.get_submodule(group.output.module).weight
            moments = self._moments.pop(group.name)
            scores = score_units(weight.detach(), moments.gram / moments.tokens, group)
            per_channel = (scores / group.channels_per_unit).repeat_interleave(group.channels_per_unit)
            self.rows["obs", group.output.module] = per_channel.float().cpu()

    def _on_input(self, group: UnitGroup, token_mask: Callable[[], Tensor]) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            mask = token_mask()
            states = in_sequences(arguments[0], len(mask))
            self._moments.setdefault(group.name, InputMoments.empty(group.channels, states.device)).add(states, mask)

        return hook


def score_units(weight: Tensor, gram: Tensor, group: UnitGroup) -> Tensor:
    """``[units]`` float64: tr(W_S ((C^-1)_SS)^-1 W_S^T) of every unit S, with C damped.

    Args:
        weight: output projection ``[out, channels]``.
        gram: C ``[channels, channels]``, undamped.

    Raises:
        ModelError: if C is not finite.
    """
    units, width = group.units, group.channels_per_unit
    damped = gram.double()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise ModelError(f"calibration: expected finite inputs, got inf or nan in group {group.name}; use bfloat16 or float32")
    inverse = torch.cholesky_inverse(factor).view(units, width, units, width)
    blocks = inverse.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.double().T.reshape(units, width, -1)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2)).clamp_min(0.0)
