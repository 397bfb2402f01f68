"""Gate Taylor, first order: |dL/dm| for a gate m = 1 on each unit. Molchanov et al., arXiv 1906.10771, section 3.

With the gate at the input of the output projection, dL/dm = sum(w * dL/dw) over the unit's columns of that projection.
"""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, share_among_channels


@register_metric
class GateTaylor:
    """|sum_n weight_n dL_n/dm_u|: the first-order change of the loss when the whole unit goes."""

    name = "gate_taylor"
    paper = "arXiv 1906.10771"
    needs = frozenset({"first"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``: signed sums are joined over the unit's channels before the modulus, then shared out."""
        group = inputs.group
        signed = inputs.weights @ inputs.statistics.member["first", group.output.module]
        return share_among_channels(signed.view(group.units, group.channels_per_unit).sum(1).abs(), group)
