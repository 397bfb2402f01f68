"""LLM-Pruner's ``param_second``: sum w^2 E_n[g_n^2], the diagonal Fisher. Ma et al., arXiv 2305.11627, equation 5."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, stack_members, weighted_rows


@register_metric
class TaylorSecond:
    """Second-order Taylor with the Hessian's diagonal from squared per-sample gradients."""

    name = "taylor_second"
    paper = "arXiv 2305.11627, equation 5"
    needs = frozenset({"second"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        return stack_members(inputs, weighted_rows(inputs, "second"))
