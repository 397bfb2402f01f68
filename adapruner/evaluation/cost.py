"""What a model costs to run: parameters, multiply-accumulates, weight memory and latency.

Latencies of two models are comparable only when taken side by side, in one process, in turns. After surgery in place
the dense model is gone: :func:`dense_twin` rebuilds it with random weights, on which latency does not depend.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adapruner.errors import ConfigurationError, ModelError
from adapruner.evaluation.generation import greedy_tokens
from adapruner.evaluation.mode import evaluation_mode, input_device
from adapruner.models.units import count_parameters

WARM_UP_ROUNDS = 2
DECODED_TOKENS = 16
GIB = 2**30


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of one model, in milliseconds: medians and interquartile ranges over the repeats."""

    prefill_ms: float
    """One forward over ``[batch, seq_len]`` tokens."""
    prefill_iqr_ms: float
    decode_ms: float
    """One more token with the key-value cache, batch 1."""
    decode_iqr_ms: float


@dataclass(frozen=True)
class Cost:
    """What one model costs."""

    parameters: int
    """Distinct parameters (tied tensors once)."""
    macs: int
    """Multiply-accumulates of one forward over ``[batch, seq_len]`` tokens."""
    weight_memory_gib: float
    latency_ms: float
    """Median time of one forward over ``[batch, seq_len]`` tokens."""
    latency_iqr_ms: float
    decode_ms: float
    """Median time of one more token with the key-value cache, batch 1."""


def count_macs(model: nn.Module, seq_len: int, batch: int = 1) -> int:
    """Multiply-accumulates of one forward over ``[batch, seq_len]`` tokens, logits of every position included.

    Counted by ``torch.utils.flop_counter.FlopCounterMode`` (two operations each) while the model runs: matrix products
    only, no norms or activations, and attention as the full ``seq_len x seq_len`` product although it is causal.
    The counter does not know the CPU kernel of ``scaled_dot_product_attention`` nor the grouped product of mixtures
    of experts, and would silently count them as nothing; their formulas are added here. For models on CPU and CUDA.

    Raises:
        ConfigurationError: if ``seq_len`` or ``batch`` is not positive, or ``seq_len`` is beyond the model's positions.
        ModelError: if attention runs in a kernel that cannot be counted.
    """
    check_sizes(model, seq_len, batch)
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation not in (None, "eager", "sdpa"):
        raise ModelError(
            f"model: expected attn_implementation 'eager' or 'sdpa', got {implementation!r}, whose operations cannot be counted; "
            "load the model with attn_implementation='sdpa'"
        )
    ids = random_ids(model, batch, seq_len)
    with evaluation_mode(model), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        model(input_ids=ids, use_cache=False)
    return int(counter.get_total_flops()) // 2


def weight_memory_gib(model: nn.Module) -> float:
    """GiB of the weights as they are stored now: parameters and persistent buffers, tied tensors once."""
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values()) / GIB


def measure_latency(
    models: dict[str, nn.Module], seq_len: int, batch: int = 1, repeats: int = 20, threads: int | None = None
) -> dict[str, Latency]:
    """Latencies of several models side by side: A B A B ..., after two rounds of warm-up.

    Not the loop of ``torch.utils.benchmark.Timer``: it finishes one model before the next, and a machine that slows
    down in between would favour the first. Accelerators are synchronised before the clock is read.

    Args:
        models: by name; all should have the same type and device.
        seq_len: tokens of the prefill. Decoding is timed over the last of them (at most 16), after the others.
        batch: of the prefill; decoding is always one sequence.
        repeats: timed rounds.
        threads: CPU threads while measuring; None leaves them as they are. Restored afterwards.

    Raises:
        ConfigurationError: if a number is not positive, ``seq_len`` is below 2 or beyond a model's positions, or no model is given.
    """
    if not models:
        raise ConfigurationError("models: expected at least one, got none; give them by name")
    for argument, value in (("repeats", repeats), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise ConfigurationError(f"{argument}: expected a positive integer, got {value}; give 1 or more")
    for model in models.values():
        check_sizes(model, seq_len, batch, shortest=2)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with cpu_threads(threads):
        for _ in range(WARM_UP_ROUNDS + repeats):
            for name, model in models.items():
                with evaluation_mode(model):
                    times[name].append((time_prefill(model, seq_len, batch), time_decode(model, seq_len)))
    return {name: _summary(pairs[WARM_UP_ROUNDS:]) for name, pairs in times.items()}


def measure_cost(model: nn.Module, seq_len: int = 128, batch: int = 1, repeats: int = 20, threads: int | None = None) -> Cost:
    """The cost of one model alone. Its latency does not compare with one taken at another time: see :func:`compare_cost`.

    Raises:
        ConfigurationError: as :func:`measure_latency`.
        ModelError: as :func:`count_macs`.
    """
    return _cost(model, seq_len, batch, measure_latency({"model": model}, seq_len, batch, repeats, threads)["model"])


def compare_cost(
    dense: nn.Module, pruned: nn.Module, seq_len: int = 128, batch: int = 1, repeats: int = 20, threads: int | None = None
) -> dict[str, Cost]:
    """The costs of both models, latencies taken side by side: ``{"dense": ..., "pruned": ...}``.

    Raises:
        ConfigurationError: as :func:`measure_latency`.
        ModelError: as :func:`count_macs`.
    """
    models = {"dense": dense, "pruned": pruned}
    latencies = measure_latency(models, seq_len, batch, repeats, threads)
    return {name: _cost(model, seq_len, batch, latencies[name]) for name, model in models.items()}


def dense_twin(config: Any, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> nn.Module:
    """A model of the same shapes with random weights, to time what surgery in place has changed.

    Args:
        config: Hugging Face configuration of the dense model, taken before the surgery; it is not changed.
        dtype: of the weights; give the pruned model's.
        device: give the pruned model's.

    The random state of the process is left as it was.
    """
    from transformers import AutoModelForCausalLM

    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        build: Any = AutoModelForCausalLM.from_config
        model: nn.Module = build(copy.deepcopy(config), dtype=dtype)
    return model.eval()


def cost_protocol(
    model: nn.Module, seq_len: int = 128, batch: int = 1, repeats: int = 20, threads: int | None = None, order: str = "models in turns"
) -> str:
    """One sentence that says how a cost was measured, for reports and tables; arguments as for :func:`measure_latency`.

    ``order`` says in words which model was timed when.
    """
    device, dtype = input_device(model), str(next(model.parameters()).dtype).removeprefix("torch.")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    if device.type == "cpu":
        where += f" with {_plural(threads or torch.get_num_threads(), 'thread')}"
    return (
        f"{where}, {dtype}, torch {torch.__version__}: MACs of the matrix products of one forward over {batch} x {seq_len} tokens, "
        f"logits of every position; latency of that forward and of one of the last {decoded_tokens(seq_len)} of {seq_len} tokens decoded "
        f"with a cache at batch 1, {order}, median of {_plural(repeats, 'round')} after {WARM_UP_ROUNDS} of warm-up; "
        "weight memory of distinct tensors"
    )


def _cost(model: nn.Module, seq_len: int, batch: int, latency: Latency) -> Cost:
    return Cost(
        parameters=count_parameters(model),
        macs=count_macs(model, seq_len, batch),
        weight_memory_gib=weight_memory_gib(model),
        latency_ms=latency.prefill_ms,
        latency_iqr_ms=latency.prefill_iqr_ms,
        decode_ms=latency.decode_ms,
    )


def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of the operators that the counter lacks, or (fused attention with fewer KV heads, in older releases) refuses."""
    fused = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    formulas: dict[str, Callable[..., int]] = {f"_scaled_dot_product_{name}": _attention_flops for name in fused}
    formulas["_grouped_mm"] = _grouped_product_flops
    return {getattr(torch.ops.aten, name): formula for name, formula in formulas.items() if hasattr(torch.ops.aten, name)}


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Shapes ``[b, heads, t, d]``: ``query @ key.T``, then ``@ value``; fewer KV heads are shared, so only the query's count."""
    b, heads, queries, d = query
    return 2 * b * heads * queries * key[2] * (d + value[3])


def _grouped_product_flops(rows: torch.Size, weights: torch.Size, *_: Any, **__: Any) -> int:
    """Shapes ``[tokens, k]`` and ``[experts, k, n]``: each row meets one expert."""
    return 2 * math.prod(rows) * weights[-1]


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
    ids = random_ids(model, batch, seq_len - tokens)
    steps = greedy_tokens(model, ids)
    next(steps)
    start = _clock(ids.device)
    for _ in range(tokens):
        next(steps)
    return (_clock(ids.device) - start) / tokens


def decoded_tokens(seq_len: int) -> int:
    """How many of the last tokens are decoded one by one."""
    return min(DECODED_TOKENS, seq_len // 2)


def _clock(device: torch.device) -> float:
    """Milliseconds, after everything queued on the device is done."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
    return time.perf_counter() * 1000.0


def _summary(pairs: list[tuple[float, float]]) -> Latency:
    prefill, decode = zip(*pairs, strict=True)
    return Latency(statistics.median(prefill), _interquartile_range(prefill), statistics.median(decode), _interquartile_range(decode))


def _interquartile_range(values: tuple[float, ...]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """So many CPU threads inside the block; ``None`` leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_ids(model: nn.Module, batch: int, seq_len: int) -> Tensor:
    """The same ids ``[batch, seq_len]`` every time, from a generator of their own."""
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = torch.randint(vocabulary, (batch, seq_len), generator=torch.Generator().manual_seed(0))
    return ids.to(input_device(model))


def check_sizes(model: nn.Module, seq_len: int, batch: int, shortest: int = 1) -> None:
    """Refuses what the model has no positions for.

    Raises:
        ConfigurationError: if ``batch`` is not positive, or ``seq_len`` is too short or beyond the model's positions.
    """
    if batch < 1:
        raise ConfigurationError(f"batch: expected a positive integer, got {batch}; give 1 or more")
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if seq_len < shortest or (positions is not None and seq_len > positions):
        upper = f" and at most {positions}, the model's positions" if positions is not None else ""
        raise ConfigurationError(f"seq_len: expected at least {shortest}{upper}, got {seq_len}; give a length in between")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
