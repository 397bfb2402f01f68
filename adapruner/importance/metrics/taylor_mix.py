"""LLM-Pruner's ``param_mix``: sum |w * G - w * A * w / 2|. Ma et al., arXiv 2305.11627, section 3.2."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, fixed_rows, stack_members


@register_metric
class TaylorMix:
    """Element-wise first and second order together. Collected for all samples alike: sample weights do not change it."""

    name = "taylor_mix"
    paper = "arXiv 2305.11627, section 3.2"
    needs = frozenset({"summed_mix"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        return stack_members(inputs, fixed_rows(inputs, "summed_mix"))
