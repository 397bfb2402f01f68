"""Negative log-likelihood of the search split: log-perplexity, in nats per token."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from adapruner.evaluation.perplexity import NLLResult, Windows, evaluate_nll_chunks
from adapruner.search.objectives import ObjectiveConfig, register_objective


@register_objective
class NegativeLogLikelihood:
    """How badly the model predicts the text."""

    name, words = "nll", "NLL"

    def prepare(self, dense: nn.Module, windows: Windows, options: ObjectiveConfig, batch_size: int) -> None:
        """Nothing of the dense model is needed."""

    def measure(self, model: nn.Module, windows: Windows, prepared: None, batch_size: int, chunks: int) -> Iterator[NLLResult]:
        return evaluate_nll_chunks(model, windows, batch_size, chunks)
