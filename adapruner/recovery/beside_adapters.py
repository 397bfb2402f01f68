"""Norms and biases that train as they are beside low-rank adapters: few numbers, which no adapter reaches (Ben Zaken et al., BitFit,
arXiv 2106.10199; Zhao et al., arXiv 2312.11420, for norms)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from adapruner.errors import ConfigurationError
from adapruner.models.tracing import find_decoder_layers

PARTS = ("norms", "biases")


def parameters_beside(model: Any, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Name -> parameter, of a model with or without adapters on it.

    Args:
        parts: ``norms``: all parameters of the decoder's norms, the last one included; ``biases``: those of linear layers in the decoder's
            layers.

    >>> from adapruner.models.loading import load_language_model
    >>> model = load_language_model("demo")
    >>> sorted(parameters_beside(model, ["norms"]))[-1], parameters_beside(model, ["biases"])
    ('model.norm.weight', {})
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    prefix, _ = find_decoder_layers(base)
    finders: dict[str, Callable[[], Iterator[tuple[str, nn.Parameter]]]] = {
        "norms": lambda: _norms(base),
        "biases": lambda: _biases(base, f"{prefix}."),
    }
    return {name: parameter for part in parts for name, parameter in finders[part]()}


def check_parts(model: Any, parts: Sequence[str]) -> None:
    """Refuses what a model does not have, or has in 16 bits, which round the steps of a usual learning rate away.

    Raises:
        ConfigurationError: naming ``recovery.lora.also_train``.
    """
    for part in parts:
        found = parameters_beside(model, [part])
        if not found:
            raise ConfigurationError(
                f"recovery.lora.also_train: expected parts that the model has, got {part!r}, and {type(model).__name__} has none; "
                "leave it out"
            )
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in found.values() if p.dtype in (torch.bfloat16, torch.float16)})
        if kinds:
            raise ConfigurationError(
                f"recovery.lora.also_train: expected {part} of 32 bits, since 16 bits round steps away, got {' and '.join(kinds)}; load "
                "the model in float32 (and train with precision bf16-mixed), or leave it out"
            )


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower() and next(module.children(), None) is None:
            yield from ((f"{name}.{own}", parameter) for own, parameter in module.named_parameters(recurse=False))


def _biases(model: nn.Module, inside: str) -> Iterator[tuple[str, nn.Parameter]]:
    norms = {id(parameter) for _, parameter in _norms(model)}
    for name, parameter in model.named_parameters():
        if name.startswith(inside) and name.endswith(".bias") and id(parameter) not in norms and ".lora_" not in name:
            yield name, parameter
