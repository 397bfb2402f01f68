"""L2 magnitude: sum of w^2, no root, as LLM-Pruner's baseline has it. Ma et al., arXiv 2305.11627."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, fixed_rows, stack_members


@register_metric
class L2Norm:
    """sum w^2 over each row (q, k, v, gate, up) or column (o, down)."""

    name = "l2"
    paper = "arXiv 2305.11627, section 4.1"
    needs: frozenset[str] = frozenset()

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        return stack_members(inputs, fixed_rows(inputs, "l2"))
