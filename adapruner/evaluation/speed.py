"""Speed over batch sizes and lengths, several models in turns at every point, with peak memory, energy, and the ideal beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from adapruner.errors import ConfigurationError
from adapruner.evaluation.cost import count_macs, peak_memory_gib, prefill_energy_j
from adapruner.evaluation.timing import (
    WARM_UP_ROUNDS,
    Latency,
    check_positive,
    check_sizes,
    decoded_tokens,
    time_decode,
    time_in_turns,
    time_prefill,
)
from adapruner.models.smaller_batches import within_memory


@dataclass(frozen=True)
class Speed(Latency):
    """One model at one batch size and length; decoding is that of ``batch`` sequences at once."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    """All sequences together."""
    peak_memory_gib: float | None
    """See :func:`adapruner.evaluation.cost.peak_memory_gib`."""
    prefill_energy_j: float | None
    """Joules of one prefill on the whole card; ``None`` where the device does not report it."""


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
    models: dict[str, nn.Module], batches: Sequence[int] = (1, 8), seq_lens: Sequence[int] = (128,), repeats: int = 10
) -> list[SpeedPoint]:
    """Prefill and decoding of several models at every batch size and length, lengths within batch sizes.

    Args:
        models: by name; all should have the same type and device.
        batches: sequences at once, of prefill and decoding.
        seq_lens: tokens of the prefill; decoding is timed over the last of them (at most 16), after the others.
        repeats: timed rounds.

    Raises:
        ConfigurationError: if there is no model, no batch size or no length, a number is not positive, or a length is below 2 or
            beyond a model's positions.
        ModelError: as :func:`adapruner.evaluation.cost.count_macs`.
    """
    for name, given in (("models", models), ("batches", batches), ("seq_lens", seq_lens)):
        if not given:
            raise ConfigurationError(f"{name}: expected at least one, got none; give some")
    check_positive("repeats", repeats)
    points = [(batch, seq_len) for batch in batches for seq_len in seq_lens]
    for model in models.values():
        for batch, seq_len in points:
            check_sizes(model, seq_len, batch, shortest=2)
    macs = {n: {name: count_macs(model, n) for name, model in models.items()} for n in seq_lens}
    return [SpeedPoint(b, n, _speeds(models, b, n, repeats), {name: b * count for name, count in macs[n].items()}) for b, n in points]


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


def speed_protocol(seq_lens: Sequence[int], repeats: int) -> str:
    """What the columns of a sweep are, in a sentence; the machine is in :func:`adapruner.evaluation.cost.cost_protocol`."""
    decoded = sorted({decoded_tokens(n) for n in seq_lens})
    tokens = str(decoded[0]) if len(decoded) == 1 else f"{decoded[0]} to {decoded[-1]}"
    return (
        f"Tokens per second of one forward over batch x length tokens, and of decoding the last {tokens} of them with a cache, all "
        f"sequences together; models in turns, median of {repeats} rounds after {WARM_UP_ROUNDS} of warm-up; ideal: ratio of MACs"
    )


def _speeds(models: dict[str, nn.Module], batch: int, seq_len: int, repeats: int) -> dict[str, Speed | None]:
    """A model that once runs out of memory is left out of the turns that follow."""

    def time_once(model: nn.Module) -> Any:
        return within_memory(lambda: (time_prefill(model, seq_len, batch), time_decode(model, seq_len, batch)))

    def speed(model: nn.Module, latency: Latency) -> Speed:
        return Speed(
            **asdict(latency),
            prefill_tokens_per_s=1000 * batch * seq_len / latency.prefill_ms,
            decode_tokens_per_s=1000 * batch / latency.decode_ms,
            peak_memory_gib=peak_memory_gib(model, seq_len, batch),
            prefill_energy_j=prefill_energy_j(model, seq_len, batch),
        )

    latencies = time_in_turns(models, repeats, time_once)
    return {
        name: None if latency is None else within_memory(lambda name=name, latency=latency: speed(models[name], latency))  # type: ignore[misc]
        for name, latency in latencies.items()
    }
