"""KL divergence from the dense model to a pruned one, over the dense model's most likely tokens.

For each predicted position the dense model's ``k`` most likely tokens are kept, everything else is one more outcome. The
divergence between these coarser distributions is a lower bound of the full one, exact when ``k`` is the vocabulary, and
never negative (the data-processing inequality: Cover and Thomas, Elements of Information Theory, section 2.8). What is
kept of the dense model is ``k`` ids and log-probabilities a position, so that it runs once and not in every trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation.perplexity import Windows, batch_inputs, in_chunks
from adapruner.models.forward import evaluation_mode
from adapruner.models.next_token_loss import IGNORED, at_least_fp32, logit_parts, next_labels

_SMALLEST = 1e-30


@dataclass(frozen=True)
class DenseTopK:
    """What is kept of the dense model's predictions on some windows."""

    ids: Tensor
    """``[n, t, k]`` int32: the most likely next tokens, on the CPU."""
    log_probabilities: Tensor
    """``[n, t, k]`` float32."""

    @property
    def k(self) -> int:
        """Tokens kept for each position."""
        return self.ids.shape[2]


@dataclass(frozen=True)
class DivergenceResult:
    """Summed divergence over some text. Results of disjoint parts add up."""

    kl_sum: float
    """Nats."""
    tokens: int
    """Number of predicted tokens."""

    @property
    def value(self) -> float:
        """Nats per token.

        Raises:
            DataError: if no token was predicted.
        """
        if self.tokens == 0:
            raise DataError("labels: expected at least one token to predict, got none; give longer texts or windows")
        return self.kl_sum / self.tokens

    def __add__(self, other: DivergenceResult) -> DivergenceResult:
        """The result over both parts."""
        return DivergenceResult(self.kl_sum + other.kl_sum, self.tokens + other.tokens)


def collect_top_k(model: nn.Module, windows: Windows, k: int = 64, batch_size: int = 8) -> DenseTopK:
    """One pass of the dense model over the windows.

    Raises:
        ConfigurationError: if ``k`` is below 1.
    """
    if k < 1:
        raise ConfigurationError(f"top_k: expected 1 or more, got {k}; give 64")
    ids, values = [], []
    with evaluation_mode(model):
        for start in range(0, len(windows.input_ids), batch_size):
            inputs = batch_inputs(model, windows, slice(start, start + batch_size))
            parts = [
                at_least_fp32(logits).log_softmax(-1).topk(min(k, logits.shape[-1]), dim=-1) for logits in logit_parts(model, **inputs)
            ]
            shape = (*inputs["input_ids"].shape, -1)
            values.append(torch.cat([p.values for p in parts]).view(shape).cpu())
            ids.append(torch.cat([p.indices for p in parts]).view(shape).int().cpu())
    return DenseTopK(torch.cat(ids), torch.cat(values))


def evaluate_divergence_chunks(
    model: nn.Module,
    windows: Windows,
    dense: DenseTopK,
    batch_size: int = 8,
    chunks: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[DivergenceResult]:
    """KL(dense || model) in nats per token, cumulative after every chunk; positions without a label do not count.

    Raises:
        ConfigurationError: if ``batch_size`` or ``chunks`` is not positive.
        DataError: if the windows are empty, ill-shaped, hold nothing to predict, or are not those of ``dense``.
    """
    if len(dense.ids) != len(windows.input_ids) or dense.ids.shape[1] != windows.input_ids.shape[1]:
        got = f"{list(windows.input_ids.shape)} and {list(dense.ids.shape[:2])}"
        raise DataError(f"dense: expected predictions for these windows, got {got}; collect them again")

    measure = partial(_batch_divergence, model, windows, dense)
    return in_chunks(model, windows, batch_size, chunks, measure, DivergenceResult(0.0, 0), progress)


def _batch_divergence(model: nn.Module, windows: Windows, dense: DenseTopK, rows: slice) -> DivergenceResult:
    inputs = batch_inputs(model, windows, rows)
    counted = next_labels(windows.labels[rows]).flatten() != IGNORED
    ids, p = dense.ids[rows].flatten(0, 1), dense.log_probabilities[rows].flatten(0, 1)
    total, start = 0.0, 0
    for logits in logit_parts(model, **inputs):
        places = start + counted[start : start + len(logits)].nonzero().flatten()
        q = at_least_fp32(logits[(places - start).to(logits.device)]).log_softmax(-1).gather(1, ids[places].long().to(logits.device))
        total += float(_divergence(p[places].to(logits.device), q).double().sum())
        start += len(logits)
    return DivergenceResult(total, int(counted.sum()))


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """``[rows]``, from two ``[rows, k]`` tables of log-probabilities; the rest of each row is one more outcome."""
    rest_p, rest_q = (1.0 - p.exp().sum(1)).clamp_min(0.0), (1.0 - q.exp().sum(1)).clamp_min(_SMALLEST)
    tail = torch.where(rest_p > 0, rest_p * (rest_p.clamp_min(_SMALLEST).log() - rest_q.log()), torch.zeros_like(rest_p))
    return ((p.exp() * (p - q)).sum(1) + tail).clamp_min(0.0)
