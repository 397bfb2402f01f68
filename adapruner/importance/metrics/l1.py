"""L1 magnitude: sum of |w|, no root. Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics.interface import MetricInputs, stack_members


class L1Norm:
    """sum |w| over each row (q, k, v, gate, up) or column (o, down)."""

    name = "l1"
    paper = "arXiv 1608.08710"
    needs: frozenset[str] = frozenset()

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        table = inputs.statistics.weights
        return stack_members(inputs, [table["l1", m.module] for m in inputs.group.members])
