"""NLL and perplexity against a slow loop in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation import perplexity
from adapruner.evaluation.perplexity import (
    NLLResult,
    describe_protocol,
    evaluate_nll,
    evaluate_nll_chunks,
    token_nll,
)
from adapruner.models.forward import input_device

VOCABULARY = 23


@dataclass
class FakeWindows:
    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor


class Bigram(nn.Module):
    """Next-token logits from the current token alone; records what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        self.inner = nn.Dropout(0.5)
        self.calls: list[dict[str, Any]] = []

    def forward(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        self.calls.append({**kwargs, "rows": len(input_ids), "training": self.training, "grad": torch.is_grad_enabled()})
        return SimpleNamespace(logits=self.inner(self.table[input_ids]))


def slow_nll(logits: Tensor, labels: Tensor) -> tuple[list[float], list[int]]:
    """One token at a time, by the definition, in Python floats."""
    sums, counts = [0.0] * len(labels), [0] * len(labels)
    for row in range(len(labels)):
        for position in range(labels.shape[1] - 1):
            target = int(labels[row, position + 1])
            if target == -100:
                continue
            scores = [float(x) for x in logits[row, position]]
            top = max(scores)
            sums[row] += top + math.log(sum(math.exp(x - top) for x in scores)) - scores[target]
            counts[row] += 1
    return sums, counts


def random_batch(rows: int = 5, length: int = 7) -> tuple[Tensor, Tensor]:
    """Logits and labels with an ignored beginning, middle and end, and one row that is ignored altogether."""
    generator = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(rows, length, VOCABULARY, generator=generator)
    labels = torch.randint(VOCABULARY, (rows, length), generator=generator)
    labels[0, :3] = labels[1, 4] = labels[2, 5:] = labels[3] = -100
    return logits, labels


def make_windows(rows: int = 11, length: int = 9) -> FakeWindows:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, 6:] = 0
    return FakeWindows(ids, ids.masked_fill(mask == 0, -100), mask)


@pytest.mark.parametrize("rows_at_once", [1, 4, 1024])
def test_token_nll_equals_the_slow_loop(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(perplexity, "ROWS_AT_ONCE", rows_at_once)
    logits, labels = random_batch()
    sums, counts = slow_nll(logits, labels)
    total, tokens = token_nll(logits, labels)
    assert total.dtype == torch.float64
    assert total.shape == ()
    assert total.item() == pytest.approx(sum(sums), rel=1e-6)
    assert tokens == sum(counts)


def test_half_precision_logits_are_summed_in_fp32_and_rare_tokens_stay_finite() -> None:
    logits = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    logits[0, 0, 0] = 200.0  # softmax().log() of the others is -inf
    total, tokens = token_nll(logits, torch.tensor([[0, 1]]))
    assert (total.item(), tokens) == (200.0, 1)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels: expected logits \[b, t, v\] .* got \[2, 3, 4\] and \[2, 2\]"):
        token_nll(torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.long))


def test_evaluate_nll_equals_the_slow_loop_with_padding() -> None:
    model, windows = Bigram(), make_windows()
    sums, counts = slow_nll(model.table.detach()[windows.input_ids], windows.labels)
    result = evaluate_nll(model, windows, batch_size=4)
    assert result.tokens == sum(counts) == 10 * 8 + 5
    assert result.nll == pytest.approx(sum(sums) / sum(counts), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-6)


def test_uniform_model_has_the_vocabulary_size_as_perplexity() -> None:
    model = Bigram()
    nn.init.constant_(model.table, 3.0)
    assert evaluate_nll(model, make_windows()).perplexity == pytest.approx(VOCABULARY, rel=1e-6)


def test_model_is_called_without_cache_and_masked_only_where_there_is_padding() -> None:
    model = Bigram()
    done: list[tuple[int, int]] = []
    evaluate_nll(model, make_windows(), batch_size=4, progress=lambda *a: done.append(a))
    assert [call["rows"] for call in model.calls] == [4, 4, 3]
    assert ["attention_mask" in call for call in model.calls] == [False, False, True]
    assert all(call["use_cache"] is False and not call["training"] and not call["grad"] for call in model.calls)
    assert done == [(4, 11), (8, 11), (11, 11)]


def test_each_modules_mode_is_restored_even_after_an_error() -> None:
    model, windows = Bigram().train(), make_windows()
    model.inner.eval()
    windows.input_ids[3] = VOCABULARY
    with pytest.raises(IndexError, match=r"out of range|out of bounds"):
        evaluate_nll(model, windows)
    assert [call["training"] for call in model.calls] == [False]
    assert [module.training for module in model.modules()] == [True, False]
    assert torch.is_grad_enabled()


def test_input_device_without_an_embedding_is_that_of_the_first_parameter() -> None:
    assert input_device(Bigram()) == torch.device("cpu") == input_device(nn.Identity())


@pytest.mark.parametrize(("chunks", "results"), [(1, 1), (2, 2), (4, 4), (100, 6)])
def test_last_chunk_is_bit_equal_to_the_whole(chunks: int, results: int) -> None:
    model, windows = Bigram().train(), make_windows()
    whole = evaluate_nll(model, windows, batch_size=2)
    parts = []
    for part in evaluate_nll_chunks(model, windows, batch_size=2, chunks=chunks):
        assert model.training
        assert torch.is_grad_enabled()
        parts.append(part)
    assert len(parts) == results
    assert parts[-1] == whole
    assert all(a.tokens < b.tokens for a, b in pairwise(parts))
    first = FakeWindows(*(t[: 2 * (6 // results)] for t in (windows.input_ids, windows.labels, windows.attention_mask)))
    assert parts[0] == evaluate_nll(model, first, batch_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, r"windows.input_ids: expected \[n >= 1, t >= 2\] token ids, got \[0, 4\]"),
        ({"labels": torch.zeros(2, 4, dtype=torch.long)}, r"windows.labels: expected the shape of input_ids, \[11, 9\], got \[2, 4\]"),
        ({"labels": torch.full((11, 9), -100)}, "windows.labels: expected at least one token to predict"),
    ],
)
def test_bad_windows_are_refused_before_any_forward(change: dict[str, Tensor], message: str) -> None:
    model, windows = Bigram(), make_windows()
    for name, value in change.items():
        setattr(windows, name, value)
    with pytest.raises(DataError, match=message):
        evaluate_nll_chunks(model, windows)
    assert model.calls == []


@pytest.mark.parametrize("name", ["batch_size", "chunks"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}: expected a positive integer, got 0"):
        evaluate_nll_chunks(Bigram(), make_windows(), **{name: 0})


def test_results_add_up_and_extremes_are_handled() -> None:
    both = NLLResult(2.0, 3, 10) + NLLResult(4.0, 1, 6)
    assert both == NLLResult(6.0, 4, 16)
    assert (NLLResult(2.0, 3, 10) + NLLResult(4.0, 1)).text_bytes is None
    assert NLLResult(8 * math.log(2), 4, 16).bits_per_byte == pytest.approx(0.5)
    assert NLLResult(1.0, 1).bits_per_byte is None
    assert NLLResult(1e6, 1).perplexity == math.inf
    with pytest.raises(DataError, match="expected at least one token to predict"):
        _ = NLLResult(0.0, 0).nll


def test_protocol_names_data_windows_and_predictions() -> None:
    text = describe_protocol("wikitext2/test", window=128, n_windows=10, tokens=1270)
    assert text == (
        "wikitext2/test: texts joined by blank lines, tokenised once, 10 non-overlapping windows of 128 tokens, remainder dropped, "
        "mean NLL over 127 predictions a window (1270 in all), log-softmax in fp32"
    )


def test_importing_perplexity_does_not_import_torchmetrics() -> None:
    code = "import sys, adapruner.evaluation.perplexity; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
