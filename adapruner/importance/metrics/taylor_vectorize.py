"""LLM-Pruner's ``vectorize``: |sum w * dL/dw| over each row or column. Ma et al., arXiv 2305.11627, equation 3."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, stack_members, weighted_rows


@register_metric
class TaylorVectorize:
    """First-order Taylor with the modulus taken per channel and coupled tensor, before heads are summed."""

    name = "taylor_vectorize"
    paper = "arXiv 2305.11627, equation 3"
    needs = frozenset({"first"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        return stack_members(inputs, [rows.abs() for rows in weighted_rows(inputs, "first")])
