"""Wanda-sp: sum_i |W_ij| * ||X_j|| on the output projections. Sun et al., arXiv 2306.11695; structured in An et al., arXiv 2312.11983."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, input_mean_square


@register_metric
class WandaSP:
    """Summed absolute weight of each column of o_proj or down_proj, times the L2 norm of its input over the tokens.

    The paper's mean over rows differs by a factor that is the same for every channel of the model.
    """

    name = "wanda_sp"
    paper = "arXiv 2306.11695, equation 1"
    needs = frozenset({"input_square_sum"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``; the norm is over the mean token (a common factor of all channels)."""
        weights = inputs.statistics.weights["l1", inputs.group.output.module]
        return (weights * input_mean_square(inputs).sqrt())[None]
