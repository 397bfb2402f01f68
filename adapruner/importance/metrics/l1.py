"""L1 magnitude: sum of |w|, no root. Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics.interface import Evidence, stack_members


class L1Norm:
    """sum |w| over each row (q, k, v, gate, up) or column (o, down)."""

    name = "l1"
    paper = "arXiv 1608.08710"
    needs: frozenset[str] = frozenset()

    def score(self, evidence: Evidence) -> Tensor:
        """``[members, channels]``."""
        table = evidence.statistics.weights
        return stack_members(evidence, [table["l1", m.module] for m in evidence.group.members])
