"""LLM-Pruner's ``param_first``: sum |w * G| with the gradient of the mean loss. Ma et al., arXiv 2305.11627, equation 3."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics import register_metric
from adapruner.importance.metrics.interface import MetricInputs, fixed_rows, stack_members


@register_metric
class TaylorFirst:
    """Element-wise first-order Taylor. Collected for all samples alike: sample weights do not change it."""

    name = "taylor_first"
    paper = "arXiv 2305.11627, equation 3"
    needs = frozenset({"summed_first"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        return stack_members(inputs, fixed_rows(inputs, "summed_first"))
