"""A stand-in for ``param_first`` that sample weights can change: sum_n weight_n sum |w * g_n| (compare arXiv 2305.11627)."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, stack_members, weighted_rows


@register_metric
class TaylorFirstCached:
    """Element-wise first-order Taylor with the modulus taken per sample; an upper bound of ``taylor_first``."""

    name = "taylor_first_cached"
    paper = "after arXiv 2305.11627, equation 3"
    needs = frozenset({"first_absolute"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        return stack_members(inputs, weighted_rows(inputs, "first_absolute"))
