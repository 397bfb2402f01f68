"""LLM-Pruner's ``param_first``: sum |w * G| with the gradient of the mean loss. Ma et al., arXiv 2305.11627, equation 3."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics.interface import MetricInputs, stack_members


class TaylorFirst:
    """Element-wise first-order Taylor. Collected for all samples alike: sample weights do not change it."""

    name = "taylor_first"
    paper = "arXiv 2305.11627, equation 3"
    needs = frozenset({"summed_first"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        table = inputs.statistics.weights
        return stack_members(inputs, [table["summed_first", m.module] for m in inputs.group.members])
