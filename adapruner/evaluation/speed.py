"""Speed over batch sizes and lengths, several models side by side, with peak memory, energy, and the ideal beside it.

Models take turns at every point (A B A B ...), after two rounds of warm-up, as in :mod:`adapruner.evaluation.cost`. Medians and
spreads are those of ``torch.utils.benchmark.Measurement``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark.utils.common import Measurement, TaskSpec

from adapruner.errors import ConfigurationError
from adapruner.evaluation.cost import (
    GIB,
    WARM_UP_ROUNDS,
    check_sizes,
    count_macs,
    cpu_threads,
    decoded_tokens,
    random_ids,
    time_decode,
    time_prefill,
    weight_memory_gib,
)
from adapruner.evaluation.energy import EnergyMeter
from adapruner.evaluation.mode import evaluation_mode, input_device


@dataclass(frozen=True)
class Speed:
    """One model at one batch size and length."""

    prefill_ms: float
    """Median time of one forward over ``[batch, seq_len]`` tokens."""
    prefill_iqr_ms: float
    """Interquartile range of it."""
    prefill_tokens_per_s: float
    decode_ms: float
    """Median time of one more token for each of ``batch`` sequences, with the key-value cache."""
    decode_iqr_ms: float
    decode_tokens_per_s: float
    """Of all sequences together."""
    peak_memory_gib: float | None
    """Weights and what the prefill needs beside them at most, as the allocator counts; ``None`` on CPU, where what a process
    holds is not what a model needs."""
    prefill_energy_j: float | None
    """Joules of one prefill on the whole card; ``None`` where the device does not tell."""


@dataclass(frozen=True)
class SpeedPoint:
    """Every model at one batch size and length."""

    batch: int
    seq_len: int
    """Tokens."""
    speeds: dict[str, Speed | None]
    """By model; ``None`` where the device has too little memory for it."""
    macs: dict[str, int]
    """Multiply-accumulates of one prefill: their ratio is the ideal ratio of times."""


def measure_speed(
    models: dict[str, nn.Module],
    batches: Sequence[int] = (1, 8),
    seq_lens: Sequence[int] = (128,),
    repeats: int = 10,
    threads: int | None = None,
) -> list[SpeedPoint]:
    """Prefill and decoding of several models at every batch size and length, lengths within batch sizes.

    Args:
        models: by name; all should have the same type and device.
        batches: sequences at once, of prefill and decoding.
        seq_lens: tokens of the prefill; decoding is timed over the last of them (at most 16), after the others.
        repeats: timed rounds.
        threads: CPU threads while measuring; ``None`` leaves them as they are. Restored afterwards.

    Raises:
        ConfigurationError: if there is no model, no batch size or no length, a number is not positive, or a length is below 2 or
            beyond a model's positions.
        ModelError: as :func:`adapruner.evaluation.cost.count_macs`.
    """
    for name, given in (("models", models), ("batches", batches), ("seq_lens", seq_lens)):
        if not given:
            raise ConfigurationError(f"{name}: expected at least one, got none; give some")
    for name, value in (("repeats", repeats), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise ConfigurationError(f"{name}: expected a positive integer, got {value}; give 1 or more")
    for model in models.values():
        for batch in batches:
            for seq_len in seq_lens:
                check_sizes(model, seq_len, batch, shortest=2)
    macs = {n: {name: count_macs(model, n) for name, model in models.items()} for n in seq_lens}
    with cpu_threads(threads):
        return [
            SpeedPoint(b, n, _point(models, b, n, repeats), {name: b * count for name, count in macs[n].items()})
            for b in batches
            for n in seq_lens
        ]


def speed_rows(points: Sequence[SpeedPoint]) -> list[dict[str, Any]]:
    """The points as JSON types, one row for each; ``ideal`` is the pruned model's MACs over the dense model's.

    For points of two models named ``dense`` and ``pruned``.
    """
    return [
        {
            "batch": p.batch,
            "seq_len": p.seq_len,
            **{name: None if speed is None else asdict(speed) for name, speed in p.speeds.items()},
            "ideal": p.macs["pruned"] / p.macs["dense"],
        }
        for p in points
    ]


def peak_memory_gib(model: nn.Module, seq_len: int, batch: int = 1) -> float | None:
    """GiB of the model's weights and of what one forward over ``[batch, seq_len]`` tokens needs beside them at most.

    What else is on the device does not count. ``None`` on CPU.
    """
    device = input_device(model)
    if device.type != "cuda":
        return None
    ids = random_ids(model, batch, seq_len)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with evaluation_mode(model):
        model(input_ids=ids, use_cache=False)
    torch.cuda.synchronize(device)
    return weight_memory_gib(model) + (torch.cuda.max_memory_allocated(device) - before) / GIB


def prefill_energy_j(model: nn.Module, seq_len: int, batch: int = 1) -> float | None:
    """Joules of one forward over ``[batch, seq_len]`` tokens on the whole card; ``None`` where the device does not tell."""
    meter = EnergyMeter(input_device(model))
    if not meter.works:
        return None
    ids = random_ids(model, batch, seq_len)
    with evaluation_mode(model):
        return meter.joules_of(lambda: model(input_ids=ids, use_cache=False))


def _point(models: dict[str, nn.Module], batch: int, seq_len: int, repeats: int) -> dict[str, Speed | None]:
    """A model that once runs out of memory is left out of the turns that follow."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    fitting = dict(models)
    for _ in range(WARM_UP_ROUNDS + repeats):
        for name, model in list(fitting.items()):
            pair = _within_memory(lambda model=model: _time_both(model, seq_len, batch))  # type: ignore[misc]
            if pair is None:
                del fitting[name]
            else:
                times[name].append(pair)
    return {
        name: _within_memory(lambda name=name: _speed(models[name], times[name][WARM_UP_ROUNDS:], seq_len, batch))  # type: ignore[misc]
        if name in fitting
        else None
        for name in models
    }


def _time_both(model: nn.Module, seq_len: int, batch: int) -> tuple[float, float]:
    with evaluation_mode(model):
        return time_prefill(model, seq_len, batch), time_decode(model, seq_len, batch)


def _within_memory(measure: Callable[[], Any]) -> Any:
    """What ``measure`` finds; ``None`` where the device's memory does not suffice."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # after the error is gone, and with it the tensors that its traceback held
    return None


def _speed(model: nn.Module, pairs: list[tuple[float, float]], seq_len: int, batch: int) -> Speed:
    prefill, decode = (_measurement(times) for times in zip(*pairs, strict=True))
    return Speed(
        prefill_ms=1000 * prefill.median,
        prefill_iqr_ms=1000 * prefill.iqr,
        prefill_tokens_per_s=batch * seq_len / prefill.median,
        decode_ms=1000 * decode.median,
        decode_iqr_ms=1000 * decode.iqr,
        decode_tokens_per_s=batch / decode.median,
        peak_memory_gib=peak_memory_gib(model, seq_len, batch),
        prefill_energy_j=prefill_energy_j(model, seq_len, batch),
    )


def _measurement(milliseconds: Sequence[float]) -> Measurement:
    seconds = [t / 1000 for t in milliseconds]
    return Measurement(number_per_run=1, raw_times=seconds, task_spec=TaskSpec(stmt="", setup=""))


def speed_protocol(seq_lens: Sequence[int], repeats: int) -> str:
    """What the columns of a sweep are, in a sentence; the machine is told by :func:`adapruner.evaluation.cost.cost_protocol`."""
    decoded = sorted({decoded_tokens(n) for n in seq_lens})
    tokens = str(decoded[0]) if len(decoded) == 1 else f"{decoded[0]} to {decoded[-1]}"
    return (
        f"Tokens per second of one forward over batch x length tokens, and of decoding the last {tokens} of them with a cache, all "
        f"sequences together; models in turns, median of {repeats} rounds after {WARM_UP_ROUNDS} of warm-up; ideal: ratio of MACs"
    )
