from __future__ import annotations

import math

import pytest
import torch

from adapruner.evaluation.perplexity_metric import CausalPerplexity
from tests.evaluation.test_perplexity import random_batch, slow_nll


def test_metric_over_two_updates_equals_one_and_the_slow_loop() -> None:
    logits, labels = random_batch()
    once, twice = CausalPerplexity(), CausalPerplexity()
    once.update(logits, labels)
    twice.update(logits[:1], labels[:1])
    twice.update(logits[1:], labels[1:])
    sums, counts = slow_nll(logits, labels)
    assert twice.compute().item() == pytest.approx(once.compute().item(), rel=1e-12)
    assert once.compute().item() == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-6)
    assert once.result().tokens == sum(counts)
    assert once.result().nll_sum == pytest.approx(sum(sums), rel=1e-6)
    assert once.nll_sum.dtype == torch.float64
    assert once.tokens.dtype == torch.int64
    once.reset()
    assert once.tokens.item() == 0
