"""L1 magnitude: sum of |w|, no root. Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, fixed_rows, stack_members


@register_metric
class L1Norm:
    """sum |w| over each row (q, k, v, gate, up) or column (o, down)."""

    name = "l1"
    paper = "arXiv 1608.08710"
    needs: frozenset[str] = frozenset()

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        return stack_members(inputs, fixed_rows(inputs, "l1"))
