"""Random scores: the floor every method must be above."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, share_among_channels


@register_metric
class RandomScore:
    """Uniform in (0, 1], independent per unit, the same for the same seed and group."""

    name = "random"
    paper = "baseline"
    needs: frozenset[str] = frozenset()

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``: one draw per unit, the same for all its channels (sums of draws would hardly differ).

        Drawn per parameter, as every global ranking divides by a unit's parameters: attention and FFN lose alike.
        """
        group = inputs.group
        generator = torch.Generator().manual_seed(inputs.seed * 1_000_003 + zlib.crc32(group.name.encode()))
        draws = 1.0 - torch.rand(group.units, generator=generator)
        return share_among_channels(draws * group.parameters_per_unit, group)
