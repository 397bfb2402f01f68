"""Negative log-likelihood and perplexity of a causal language model.

The log-softmax is taken in fp32, sums are kept in float64, and every predicted token has the same weight, however
the windows fall into batches. Perplexity is ``exp`` of the mean; nothing is averaged over batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adapruner.errors import ConfigurationError, DataError
from adapruner.models.forward import evaluation_mode, input_device
from adapruner.models.next_token_loss import IGNORED, at_least_fp32, next_labels, next_token_losses
from adapruner.models.smaller_batches import in_parts

ROWS_AT_ONCE = 1024
"""Rows of the logits that are held in fp32 at a time: 128 MiB for a vocabulary of 32,000."""


class Adds(Protocol):
    """A result of some text; those of disjoint parts add up."""

    def __add__(self, other: Any, /) -> Any:
        """The result over both parts."""


Result = TypeVar("Result", bound=Adds)


class Windows(Protocol):
    """What is evaluated: three int64 tensors of one shape ``[n, t]``."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids."""

    @property
    def labels(self) -> Tensor:
        """The ids again, not shifted; -100 where nothing is to be predicted."""

    @property
    def attention_mask(self) -> Tensor:
        """1 for a token, 0 for padding."""


@dataclass(frozen=True)
class NLLResult:
    """Summed negative log-likelihood of some text. Results of disjoint parts add up."""

    nll_sum: float
    """Nats."""
    tokens: int
    """Number of predicted tokens."""
    text_bytes: int | None = None
    """UTF-8 bytes of the predicted text where known, to compare models with different tokenizers."""

    @property
    def nll(self) -> float:
        """Nats per token.

        Raises:
            DataError: if no token was predicted.
        """
        if self.tokens == 0:
            raise DataError("labels: expected at least one token to predict, got none; give longer texts or windows")
        return self.nll_sum / self.tokens

    @property
    def value(self) -> float:
        """What a search minimises: :attr:`nll`."""
        return self.nll

    @property
    def perplexity(self) -> float:
        """``exp(nll)``; infinite where that is beyond a double."""
        nll = self.nll
        return math.inf if nll > 709.0 else math.exp(nll)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte; None where ``text_bytes`` is not known."""
        return self.nll_sum / math.log(2) / self.text_bytes if self.text_bytes else None

    def __add__(self, other: NLLResult) -> NLLResult:
        """The result over both parts."""
        known = self.text_bytes is not None and other.text_bytes is not None
        text_bytes = (self.text_bytes or 0) + (other.text_bytes or 0) if known else None
        return NLLResult(self.nll_sum + other.nll_sum, self.tokens + other.tokens, text_bytes)


def token_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Summed negative log-likelihood of each next token, without gradients.

    Args:
        logits: ``[b, t, v]`` of any floating type.
        labels: ``[b, t]`` int64, not shifted; -100 is ignored.

    Returns:
        The sum in nats, a float64 scalar on the logits' device, and the number of predicted tokens.

    Raises:
        DataError: if the shapes do not fit.

    >>> total, tokens = token_nll(torch.zeros(1, 3, 10), torch.tensor([[4, 2, -100]]))
    >>> tokens, round(total.item(), 4)
    (1, 2.3026)
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise DataError(
            f"labels: expected logits [b, t, v] and labels [b, t], got {list(logits.shape)} and {list(labels.shape)}; "
            "give unshifted labels, one per position"
        )
    targets = next_labels(labels)
    count = int((targets != IGNORED).sum())
    # Moving the labels left, and not cutting the logits, leaves the logits a view: no second copy of the largest tensor.
    rows, flat = logits.detach().flatten(0, 1), targets.to(logits.device).flatten()
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(flat), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        total += cross_entropy(at_least_fp32(rows[part]), flat[part], ignore_index=IGNORED, reduction="none").double().sum()
    return total, count


def evaluate_nll(model: nn.Module, windows: Windows, batch_size: int = 8, progress: Callable[[int, int], None] | None = None) -> NLLResult:
    """Negative log-likelihood of the windows under the model, on the model's device.

    Args:
        model: a causal language model of Hugging Face's kind. It is evaluated in evaluation mode without gradients;
            its mode is restored.
        windows: ``input_ids``, ``labels`` and ``attention_mask``, each ``[n, t]``; with ``text_bytes`` ``[n]``, the result has
            bits per byte too.
        batch_size: windows in one forward.
        progress: called with (windows done, windows in all) after every forward.

    Raises:
        ConfigurationError: if ``batch_size`` is not positive.
        DataError: if the windows are empty, ill-shaped, or hold nothing to predict.
    """
    return list(evaluate_nll_chunks(model, windows, batch_size, chunks=1, progress=progress))[-1]


def evaluate_nll_chunks(
    model: nn.Module, windows: Windows, batch_size: int = 8, chunks: int = 4, progress: Callable[[int, int], None] | None = None
) -> Iterator[NLLResult]:
    """Like :func:`evaluate_nll`, cumulative after every chunk, so that a hopeless trial can stop early.

    Chunks end where a batch ends: the last result has every bit of :func:`evaluate_nll`'s, whatever ``chunks`` is.
    Fewer batches than chunks therefore make fewer results. Between two results the model is in its own mode.

    Raises:
        ConfigurationError: if ``batch_size`` or ``chunks`` is not positive.
        DataError: if the windows are empty, ill-shaped, or hold nothing to predict.
    """

    def measure(rows: slice) -> NLLResult:
        labels = windows.labels[rows]
        total = next_token_losses(model, labels, **batch_inputs(model, windows, rows)).double().sum().item()
        return NLLResult(total, int((labels[:, 1:] != IGNORED).sum()), None if text_bytes is None else int(text_bytes[rows].sum()))

    text_bytes: Tensor | None = getattr(windows, "text_bytes", None)
    return in_chunks(model, windows, batch_size, chunks, measure, NLLResult(0.0, 0, None if text_bytes is None else 0), progress)


def in_chunks(
    model: nn.Module,
    windows: Windows,
    batch_size: int,
    chunks: int,
    measure: Callable[[slice], Result],
    nothing: Result,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Result]:
    """Adds up what ``measure`` finds in each batch of windows; the sum so far after every chunk of batches.

    Args:
        measure: rows of the windows -> their result; called in evaluation mode, without gradients, and for fewer rows at a time where the
            device's memory does not hold a batch.
        nothing: the result of no windows.

    Raises:
        ConfigurationError: if ``batch_size`` or ``chunks`` is not positive.
        DataError: if the windows are empty, ill-shaped, or hold nothing to predict.
    """
    for name, value in (("batch_size", batch_size), ("chunks", chunks)):
        if value < 1:
            raise ConfigurationError(f"{name}: expected a positive integer, got {value}; give 1 or more")
    _check_windows(windows)
    n = len(windows.input_ids)
    starts = range(0, n, batch_size)
    parts = min(chunks, len(starts))

    def cumulative() -> Iterator[Result]:
        result = nothing
        for part in range(parts):
            with evaluation_mode(model):  # for each part: held over a yield, it would reach into the consumer's code
                for start in starts[part * len(starts) // parts : (part + 1) * len(starts) // parts]:
                    result = result + in_parts(measure, slice(start, min(start + batch_size, n)))
                    if progress is not None:
                        progress(min(start + batch_size, n), n)
            yield result

    return cumulative()


def batch_inputs(model: nn.Module, windows: Windows, rows: slice) -> dict[str, Tensor]:
    """What the model takes of some of the windows, on its device."""
    device = input_device(model)
    inputs = {"input_ids": windows.input_ids[rows].to(device)}
    mask = windows.attention_mask[rows]
    if not bool(mask.all()):
        # A mask of ones changes nothing but would cost scaled_dot_product_attention its causal fast path.
        inputs["attention_mask"] = mask.to(device)
    return inputs


def describe_protocol(name: str, window: int, n_windows: int, tokens: int, begins_with: str | None = None) -> str:
    """One sentence that says how a perplexity was measured, for reports and tables.

    Args:
        name: of the data set and split.
        window: tokens in a window.
        n_windows: number of windows.
        tokens: number of predicted tokens (:attr:`NLLResult.tokens`).
        begins_with: the token that every window begins with, where there is one.

    >>> describe_protocol("wikitext2/test", 128, 10, 1270)  # doctest: +ELLIPSIS
    'wikitext2/test: texts joined by blank lines, tokenised once, 10 non-overlapping windows of 128 tokens, ...'
    """
    begin = "" if begins_with is None else f", each beginning with {begins_with}"
    if tokens < n_windows * (window - 1):  # rows of their own length
        return (
            f"{name}: {n_windows} texts of their own, cut to {window} tokens or padded{begin}, mean NLL over {tokens} predictions in all, "
            f"{tokens / n_windows:.1f} a text, log-softmax in fp32"
        )
    windows = f"{n_windows} non-overlapping window{'s' if n_windows > 1 else ''} of {window} tokens"
    return (
        f"{name}: texts joined by blank lines, tokenised once, {windows}{begin}, "
        f"remainder dropped, mean NLL over {window - 1} predictions a window ({tokens} in all), log-softmax in fp32"
    )


def _check_windows(windows: Windows) -> None:
    shape = tuple(windows.input_ids.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        raise DataError(f"windows.input_ids: expected [n >= 1, t >= 2] token ids, got {list(shape)}; give longer texts or shorter windows")
    for name in ("labels", "attention_mask"):
        got = tuple(getattr(windows, name).shape)
        if got != shape:
            raise DataError(f"windows.{name}: expected the shape of input_ids, {list(shape)}, got {list(got)}; build the windows again")
    if not bool((windows.labels[:, 1:] != IGNORED).any()):
        raise DataError("windows.labels: expected at least one token to predict, got only -100; give longer texts or windows")
