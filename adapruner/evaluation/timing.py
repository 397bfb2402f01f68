"""Wall-clock times of prefill and decoding, several models in turns.

Not the loop of ``torch.utils.benchmark.Timer``: it finishes one model before the next, and a machine that slows down in between would
favour the first. Accelerators are synchronised before the clock is read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from adapruner.errors import ConfigurationError
from adapruner.evaluation.generation import next_tokens
from adapruner.models.forward import evaluation_mode, random_ids

WARM_UP_ROUNDS = 2
DECODED_TOKENS = 16


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of one model, in milliseconds: medians and interquartile ranges over the repeats."""

    prefill_ms: float
    """One forward over ``[batch, seq_len]`` tokens."""
    prefill_iqr_ms: float
    decode_ms: float
    """One more token of each sequence with the key-value cache."""
    decode_iqr_ms: float

    @classmethod
    def of_rounds(cls, rounds: Sequence[tuple[float, float]]) -> Latency:
        """Summarises (prefill, decoding) in milliseconds, a pair for each timed round.

        >>> Latency.of_rounds([(float(x), 10.0 * x) for x in (9, 1, 5, 3, 7)])
        Latency(prefill_ms=5.0, prefill_iqr_ms=4.0, decode_ms=50.0, decode_iqr_ms=40.0)
        """
        prefill, decode = zip(*rounds, strict=True)
        return cls(statistics.median(prefill), _interquartile_range(prefill), statistics.median(decode), _interquartile_range(decode))


def time_in_turns(
    models: dict[str, nn.Module], repeats: int, time_once: Callable[[nn.Module], tuple[float, float] | None]
) -> dict[str, Latency | None]:
    """Times all models A B A B ..., in evaluation mode, after two rounds of warm-up.

    Args:
        models: by name.
        repeats: timed rounds.
        time_once: milliseconds of prefill and decoding. ``None`` leaves the model out of the turns that follow, and its result is ``None``.
    """
    rounds: dict[str, list[tuple[float, float]] | None] = {name: [] for name in models}
    for _ in range(WARM_UP_ROUNDS + repeats):
        for name, model in models.items():
            earlier = rounds[name]
            if earlier is None:
                continue
            with evaluation_mode(model):
                found = time_once(model)
            rounds[name] = None if found is None else [*earlier, found]
    return {name: None if found is None else Latency.of_rounds(found[WARM_UP_ROUNDS:]) for name, found in rounds.items()}


def time_prefill(model: nn.Module, seq_len: int, batch: int) -> float:
    """Milliseconds of one forward over ``[batch, seq_len]`` tokens, once; use inside :func:`evaluation_mode`."""
    ids = random_ids(model, batch, seq_len)
    start = _clock(ids.device)
    model(input_ids=ids, use_cache=False)
    return _clock(ids.device) - start


def time_decode(model: nn.Module, seq_len: int, batch: int = 1) -> float:
    """Milliseconds per token of each of ``batch`` sequences, once; use inside :func:`evaluation_mode`.

    The whole context stays within ``seq_len``, which the model is known to have positions for.
    """
    tokens = decoded_tokens(seq_len)
    steps = next_tokens(model, random_ids(model, batch, seq_len - tokens))
    device = next(steps).device
    start = _clock(device)
    for _ in range(tokens):
        next(steps)
    return (_clock(device) - start) / tokens


def decoded_tokens(seq_len: int) -> int:
    """How many of the last tokens are decoded one by one."""
    return min(DECODED_TOKENS, seq_len // 2)


def check_sizes(model: nn.Module, seq_len: int, batch: int, shortest: int = 1) -> None:
    """Refuses what the model has no positions for.

    Raises:
        ConfigurationError: if ``batch`` is not positive, or ``seq_len`` is too short or beyond the model's positions.
    """
    check_positive("batch", batch)
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if seq_len < shortest or (positions is not None and seq_len > positions):
        upper = f" and at most {positions}, the model's positions" if positions is not None else ""
        raise ConfigurationError(f"seq_len: expected at least {shortest}{upper}, got {seq_len}; give a length in between")


def check_positive(argument: str, value: int) -> None:
    """Refuses a number below 1.

    Raises:
        ConfigurationError: naming the argument.
    """
    if value < 1:
        raise ConfigurationError(f"{argument}: expected a positive integer, got {value}; give 1 or more")


def _clock(device: torch.device) -> float:
    """Milliseconds, after everything queued on the device is done."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
    return time.perf_counter() * 1000.0


def _interquartile_range(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower
