"""Activation norm: the L2 norm of an output projection's input channel. Molchanov et al., arXiv 1611.06440, section 2.2."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, input_mean_square


@register_metric
class ActivationNorm:
    """||X_j|| of the mean token, weights aside."""

    name = "activation_norm"
    paper = "arXiv 1611.06440, section 2.2"
    needs = frozenset({"input_square_sum"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``."""
        return input_mean_square(inputs).sqrt()[None]
