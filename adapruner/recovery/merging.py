"""Adds adapters to the weights of their layers, in 16 bits without losing what is smaller than their steps.

The update of a recovery is small beside the weights: of SmolLM2-135M in bfloat16, 0.1 to 0.8 % of their size, and a step between two
neighbouring bfloat16 numbers is 0.4 to 0.8 %. The nearest number is then often the old one: 72 to 87 % of the update was left in most
matrices. Rounding up or down by chance, in proportion to the distance, keeps all of it on average, and what is lost is noise that does not
add up (Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv 1502.02551).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: Of the random numbers of rounding: equal runs have equal weights.
_SEED = 0


def merge_lora(adapted: Any) -> nn.Module:
    """Adds every adapter to its layer and takes the wrapping off; a model without adapters comes back as it is.

    Weights of 16 bits are rounded by :func:`round_by_chance`, with the same random numbers each time.
    """
    if not hasattr(adapted, "merge_and_unload"):
        return adapted  # type: ignore[no-any-return]
    generator = torch.Generator().manual_seed(_SEED)
    for layer in _layers_of_16_bits(adapted):
        _add(layer, generator)
    merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # else save_pretrained looks for adapters
    return merged


def round_by_chance(values: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """Values in a lower precision: of the two neighbours each with the probability that makes the mean right.

    Args:
        values: float32, of any shape.
        dtype: ``bfloat16`` or ``float16``.
        generator: of the random numbers, on the CPU.

    >>> rounded = round_by_chance(torch.full((10_000,), 1.001), torch.bfloat16, torch.Generator().manual_seed(0))
    >>> sorted(set(rounded.tolist())), round(rounded.float().mean().item(), 3)
    ([1.0, 1.0078125], 1.001)
    """
    kind = torch.finfo(dtype)
    exponent = torch.frexp(values).exponent - 1
    step = torch.ldexp(torch.ones_like(values), exponent.clamp_min(int(math.log2(kind.tiny))) + int(math.log2(kind.eps)))
    chance = torch.rand(values.shape, generator=generator).to(values.device)
    steps = values / step
    below = steps.floor()
    return ((below + (chance < steps - below)) * step).clamp(kind.min, kind.max).to(dtype)


def _layers_of_16_bits(adapted: Any) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            weight = getattr(module.get_base_layer(), "weight", None)
            if weight is not None and weight.dtype in (torch.bfloat16, torch.float16):
                yield module


@torch.no_grad()
def _add(layer: Any, generator: torch.Generator) -> None:
    """Adds a layer's adapters to its weight, and leaves nothing in them for ``peft`` to add."""
    weight, names = layer.get_base_layer().weight, [name for name in layer.active_adapters if name in layer.lora_A]
    exact = weight.float()
    for name in names:
        update = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() * layer.scaling[name]
        exact = exact + (update.T if getattr(layer, "fan_in_fan_out", False) else update)
    if names and bool(torch.isfinite(exact).all()):  # else peft's own merge refuses it, with the weights as they were
        weight.copy_(round_by_chance(exact, weight.dtype, generator))
        for name in names:
            layer.lora_B[name].weight.zero_()
