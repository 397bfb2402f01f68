"""KL from the dense model: against the full divergence, and its bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation.divergence import DenseTopK, collect_top_k, evaluate_divergence_chunks
from tests.conftest import VOCABULARY, build_model, build_windows


@pytest.fixture(scope="module")
def models() -> Any:
    dense, other = build_model("llama"), build_model("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return dense, other


def slow_divergence(dense: Any, other: Any, windows: Any, k: int) -> float:
    """Position by position, outcome by outcome."""
    total, count = 0.0, 0
    with torch.no_grad():
        p = dense(windows.input_ids, attention_mask=windows.attention_mask).logits.double().softmax(-1)
        q = other(windows.input_ids, attention_mask=windows.attention_mask).logits.double().softmax(-1)
    for row, labels in enumerate(windows.labels.tolist()):
        for place in range(len(labels) - 1):
            if labels[place + 1] == -100:
                continue
            kept = p[row, place].topk(k).indices.tolist()
            pairs = [(float(p[row, place, i]), float(q[row, place, i])) for i in kept]
            if k < VOCABULARY:
                pairs.append((1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)))
            total += sum(a * torch.log(torch.tensor(a / b)).item() for a, b in pairs)
            count += 1
    return total / count


@pytest.mark.parametrize("k", [1, 7, VOCABULARY])
def test_equals_the_slow_sum(models: Any, k: int) -> None:
    dense, other, windows = *models, build_windows()
    *_, result = evaluate_divergence_chunks(other, windows, collect_top_k(dense, windows, k, batch_size=2), batch_size=2, chunks=2)
    assert result.value == pytest.approx(slow_divergence(dense, other, windows, k), rel=1e-4, abs=1e-6)


def test_is_zero_for_the_dense_model_and_grows_with_k(models: Any) -> None:
    dense, other, windows = *models, build_windows()

    def value(model: Any, k: int) -> float:
        *_, result = evaluate_divergence_chunks(model, windows, collect_top_k(dense, windows, k))
        return result.value

    assert value(dense, 5) == pytest.approx(0.0, abs=1e-6)
    by_k = [value(other, k) for k in (1, 4, 16, VOCABULARY)]
    assert 0 < by_k[0] < by_k[1] < by_k[2] <= by_k[3]


def test_refusals(models: Any) -> None:
    dense, windows = models[0], build_windows()
    with pytest.raises(ConfigurationError, match="top_k: expected 1 or more, got 0"):
        collect_top_k(dense, windows, 0)
    with pytest.raises(DataError, match="dense: expected predictions for these windows"):
        evaluate_divergence_chunks(dense, windows, DenseTopK(torch.zeros(1, 2, 3, dtype=torch.int32), torch.zeros(1, 2, 3)))
