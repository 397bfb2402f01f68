"""Optimal brain surgeon on whole units: the error left after the others are refitted. Kurtic et al., arXiv 2302.04089 (ZipLM)."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs


@register_metric
class OptimalBrainSurgeon:
    """tr(W_S ((C^-1)_SS)^-1 W_S^T) on the output projections; SlimGPT (arXiv 2412.18110) and FASP (arXiv 2501.09412) use the like.

    The score that expects a reconstruction. Collected for all samples alike: sample weights do not change it.
    """

    name = "obs"
    paper = "arXiv 2302.04089, equation 4"
    needs = frozenset({"obs"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[1, channels]``: a unit's score in equal parts over its channels."""
        return inputs.statistics.weights["obs", inputs.group.output.module][None]
