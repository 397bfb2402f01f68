"""FLAP's IFV: the variance of an input channel alone. An et al., arXiv 2312.11983, equation 4."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, input_variance


@register_metric
class FluctuationIFV:
    """Var[X_j] on the output projections."""

    name = "flap_ifv"
    paper = "arXiv 2312.11983, equation 4"
    needs = frozenset({"input_sum", "input_square_sum"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``."""
        return input_variance(inputs)[None]
