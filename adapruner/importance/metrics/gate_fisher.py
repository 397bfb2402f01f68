"""Empirical Fisher on gates: E_n[(dL_n/dm)^2]. Theis et al., arXiv 1801.05787; Kwon et al., arXiv 2204.09656."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, share_among_channels


@register_metric
class GateFisher:
    """sum_n weight_n (dL_n/dm_u)^2: half of it estimates the second-order loss when the whole unit goes."""

    name = "gate_fisher"
    paper = "arXiv 2204.09656, equation 6"
    needs = frozenset({"first"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``: squares are taken per unit and sample, then shared out over the unit's channels."""
        group = inputs.group
        signed = inputs.statistics.member["first", group.output.module]
        gates = signed.view(-1, group.units, group.channels_per_unit).sum(2)
        return share_among_channels(inputs.weights @ gates.square(), group)
