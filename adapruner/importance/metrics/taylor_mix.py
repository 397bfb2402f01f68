"""LLM-Pruner's ``param_mix``: sum |w * G - w * A * w / 2|. Ma et al., arXiv 2305.11627, section 3.2."""

from __future__ import annotations

from torch import Tensor

from adapruner.importance.metrics.interface import MetricInputs, stack_members


class TaylorMix:
    """Element-wise first and second order together. Collected for all samples alike: sample weights do not change it."""

    name = "taylor_mix"
    paper = "arXiv 2305.11627, section 3.2"
    needs = frozenset({"summed_mix"})

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]``."""
        table = inputs.statistics.weights
        return stack_members(inputs, [table["summed_mix", m.module] for m in inputs.group.members])
