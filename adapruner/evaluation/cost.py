"""How the costs of a model are measured: multiply-accumulates, weight memory, latency, peak memory and energy.

Which of them a report holds says :mod:`adapruner.evaluation.cost_table`.

Latencies of two models are comparable only when taken side by side, in one process, in turns. After surgery in place
the dense model is gone: :func:`random_dense_model` rebuilds it with random weights, on which latency does not depend.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adapruner.errors import ConfigurationError, ModelError
from adapruner.evaluation.energy import EnergyMeter
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
from adapruner.models.forward import evaluation_mode, input_device, random_ids
from adapruner.models.shapes import clear_layer_widths, is_narrower, narrow_to
from adapruner.models.units import ModelStructure

GIB = 2**30


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


def peak_memory_gib(model: nn.Module, seq_len: int, batch: int = 1) -> float | None:
    """GiB of the model's weights and of what one forward over ``[batch, seq_len]`` tokens needs beside them at most.

    As the allocator counts; what else is on the device does not count. ``None`` on CPU, where what a process holds is not what a
    model needs.
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
    """Joules of one forward over ``[batch, seq_len]`` tokens on the whole card; ``None`` where the device does not report it."""
    ids = random_ids(model, batch, seq_len)
    with evaluation_mode(model):
        return EnergyMeter(ids.device).joules_of(lambda: model(input_ids=ids, use_cache=False))


def measure_latency(models: dict[str, nn.Module], seq_len: int, batch: int = 1, repeats: int = 20) -> dict[str, Latency]:
    """Latencies of several models side by side: A B A B ..., after two rounds of warm-up.

    Args:
        models: by name; all should have the same type and device.
        seq_len: tokens of the prefill. Decoding is timed over the last of them (at most 16), after the others.
        batch: of the prefill; decoding is always one sequence.
        repeats: timed rounds.

    Raises:
        ConfigurationError: if a number is not positive, ``seq_len`` is below 2 or beyond a model's positions, or no model is given.
    """
    if not models:
        raise ConfigurationError("models: expected at least one, got none; give them by name")
    check_positive("repeats", repeats)
    for model in models.values():
        check_sizes(model, seq_len, batch, shortest=2)
    found = time_in_turns(models, repeats, lambda model: (time_prefill(model, seq_len, batch), time_decode(model, seq_len)))
    return {name: latency for name, latency in found.items() if latency is not None}


def random_dense_model(
    config: Any, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", structure: ModelStructure | None = None
) -> nn.Module:
    """A model of the same shapes with random weights, to time what surgery in place has changed.

    The random state of the process is left as it was.

    Args:
        config: Hugging Face configuration of the dense model, taken before the surgery; it is not changed.
        dtype: of the weights; give the pruned model's.
        device: give the pruned model's.
        structure: of the model before the surgery, whose layers may be narrower than the configuration says; ``None``: they are not.
    """
    from transformers import AutoModelForCausalLM

    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        build: Any = AutoModelForCausalLM.from_config
        config = copy.deepcopy(config)
        clear_layer_widths(config)
        model: nn.Module = build(config, dtype=dtype)
    if structure is not None and is_narrower(structure):
        narrow_to(model, structure)
    return model.eval()


def cost_protocol(model: nn.Module, seq_len: int = 128, batch: int = 1, repeats: int = 20, order: str = "models in turns") -> str:
    """One sentence that says how a cost was measured, for reports and tables; arguments as for :func:`measure_latency`.

    ``order`` says which model was timed when.
    """
    return (
        f"{hardware_of(model)}, torch {torch.__version__}: MACs of the matrix products of one forward over {batch} x {seq_len} tokens, "
        f"logits of every position; latency of that forward and of one of the last {decoded_tokens(seq_len)} of {seq_len} tokens decoded "
        f"with a cache at batch 1, {order}, median of {_plural(repeats, 'round')} after {WARM_UP_ROUNDS} of warm-up; "
        "weight memory of distinct tensors"
    )


def hardware_of(model: nn.Module) -> str:
    """Device, threads and the type of the weights, in words."""
    device, dtype = input_device(model), str(next(model.parameters()).dtype).removeprefix("torch.")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    threads = f" with {_plural(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    return f"{where}{threads}, {dtype}"


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


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
