"""KL divergence from the dense model's predictions, over its most likely tokens; see :mod:`adapruner.evaluation.divergence`."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from adapruner.evaluation.divergence import DenseTopK, DivergenceResult, collect_top_k, evaluate_divergence_chunks
from adapruner.evaluation.perplexity import Windows
from adapruner.search.objectives import ObjectiveConfig, register_objective


@register_objective
class DivergenceFromDense:
    """How far the model's predictions are from the dense model's."""

    name, words = "kl", "KL from the dense model's predictions"

    def prepare(self, dense: nn.Module, windows: Windows, options: ObjectiveConfig, batch_size: int) -> DenseTopK:
        """The dense model's ``top_k`` most likely tokens at each position."""
        return collect_top_k(dense, windows, options.top_k, batch_size)

    def measure(self, model: nn.Module, windows: Windows, prepared: DenseTopK, batch_size: int, chunks: int) -> Iterator[DivergenceResult]:
        return evaluate_divergence_chunks(model, windows, prepared, batch_size, chunks)
