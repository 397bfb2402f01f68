"""Runs token windows through a model, batch by batch, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adapruner.errors import DataError

Progress = Callable[[int], None]
"""Called with the number of samples that are done."""


class Windows(Protocol):
    """The part of :class:`adapruner.data.windows.TextWindows` that is needed; both tensors are ``[n, seq_len]``."""

    input_ids: Tensor
    attention_mask: Tensor


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside the block; both as before afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    required = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module, training in modes:  # one by one: train() would give every submodule the model's mode
            module.training = training


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Removes hooks after the block, also those that were registered before another could not be."""
    with ExitStack() as hooks:
        for handle in handles:
            hooks.callback(handle.remove)
        yield


def batches(samples: int, batch_size: int, progress: Progress | None = None) -> Iterator[slice]:
    """Rows of one batch after the other; ``progress`` is called after each.

    >>> [(rows.start, rows.stop) for rows in batches(5, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, samples, batch_size):
        stop = min(start + batch_size, samples)
        yield slice(start, stop)
        if progress:
            progress(stop)


def observe(
    model: Any, observers: Mapping[nn.Module, Callable[..., None]], windows: Windows, batch_size: int = 8, progress: Progress | None = None
) -> int:
    """Runs the windows through the model, without logits; returns the number of tokens that are no padding.

    Args:
        observers: module -> called with the module, its arguments, its keywords, its output, and ``[batch, seq_len]`` float32: 1
            for a token, 0 for padding.

    Raises:
        DataError: if there is no token.
    """
    device, counted = model.get_input_embeddings().weight.device, torch.zeros(0)

    def hook(observer: Callable[..., None]) -> Callable[..., None]:
        return lambda *seen: observer(*seen, counted)

    handles = (module.register_forward_hook(hook(observer), with_kwargs=True) for module, observer in observers.items())
    with frozen(model), torch.no_grad(), hooked(handles):
        for rows in batches(len(windows.input_ids), batch_size, progress):
            mask = windows.attention_mask[rows].to(device)
            counted = mask.float()
            model.base_model(input_ids=windows.input_ids[rows].to(device), attention_mask=mask, use_cache=False)
    tokens = int(windows.attention_mask.sum())
    if tokens == 0:
        raise DataError("windows: expected at least one calibration token to score the model on, got none; give longer texts")
    return tokens
