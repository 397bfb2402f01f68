"""FLAP's WIFV: the variance of an input channel times the squared norm of its weights. An et al., arXiv 2312.11983, equation 5."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, input_variance


@register_metric
class FluctuationWIFV:
    """Var[X_j] * sum_i W_ij^2 on the output projections: what a bias cannot make up for when the channel goes."""

    name = "flap_wifv"
    paper = "arXiv 2312.11983, equation 5"
    needs = frozenset({"input_sum", "input_square_sum"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``; the variance is over all tokens, each sample at its weight."""
        norms = inputs.statistics.weights["l2", inputs.group.output.module]
        return (input_variance(inputs) * norms)[None]
