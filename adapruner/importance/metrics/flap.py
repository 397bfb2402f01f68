"""FLAP as its authors' code computes it: WIFV about a running mean, squared in attention. An et al., arXiv 2312.11983, lib/prune.py.

Equation 5 of the paper, the plain variance, is :mod:`adapruner.importance.metrics.flap_wifv`; the code differs from it in two ways,
and both change which units go.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs


@register_metric
class FluctuationRunning:
    """The deviation of an input channel from its mean so far, times the squared norm of its weights; in attention the square of that.

    Samples are taken one at a time, in the order of the pool. With m_n the mean over samples 1 to n of each sample's mean, and S_n the
    sum of (x - m_n)^2 over the tokens of sample n, the code's recursion comes to sum over n from 2 of S_n (n - 1) / n, up to a factor.
    Sample weights stand for repetition: n becomes the weight so far.
    """

    name = "flap"
    paper = "arXiv 2312.11983, as published in code"
    needs = frozenset({"input_sum", "input_square_sum"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``."""
        norms = inputs.statistics.weights["l2", inputs.group.output.module]
        score = running_fluctuation(inputs) * norms
        return (score.square() if inputs.group.kind == "attention" else score)[None]


def running_fluctuation(inputs: MetricInputs) -> Tensor:
    """``[channels]`` float32: weighted mean over samples of S_n (n - 1) / n, in float64 within."""
    statistics, name = inputs.statistics, inputs.group.name
    sums, squares = (statistics.inputs[kind, name].double() for kind in ("input_sum", "input_square_sum"))
    tokens, weights = statistics.tokens.double()[:, None], inputs.weights.double()[:, None]
    so_far = weights.cumsum(0)
    means = (weights * sums / tokens).cumsum(0) / so_far.clamp_min(torch.finfo(torch.float64).tiny)
    deviations = squares - 2.0 * means * sums + tokens * means.square()
    earlier = (so_far - weights) / so_far.clamp_min(torch.finfo(torch.float64).tiny)
    return (weights * deviations * earlier).sum(0).clamp_min(0.0).float()
