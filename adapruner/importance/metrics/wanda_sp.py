"""Wanda-sp: sum_i |W_ij| * ||X_j|| on the output projections. Sun et al., arXiv 2306.11695; structured in An et al., arXiv 2312.11983."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics.interface import MetricInputs


class WandaSP:
    """Summed absolute weight of each column of o_proj or down_proj, times the L2 norm of its input over the tokens.

    The paper's mean over rows differs by a factor that is the same for every channel of the model.
    """

    name = "wanda_sp"
    paper = "arXiv 2306.11695, equation 1"
    needs = frozenset({"input_square_sum"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``; the norm is over the mean token (a common factor of all channels)."""
        group, statistics = inputs.group, inputs.statistics
        mean_square = (inputs.weights @ statistics.inputs["input_square_sum", group.name]) / (inputs.weights @ statistics.tokens)
        return (statistics.weights["l1", group.output.module] * mean_square.sqrt())[None]
