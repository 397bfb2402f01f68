"""Runs a model and leaves it as it was: its mode, its gradients, hooks, batches of token windows."""

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
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode comes back on leaving, errors included.

    ``torch.no_grad`` and not ``torch.inference_mode``: what a forward leaves behind inside the model (rotary
    frequencies that grew with the sequence, cached masks) would be inference tensors, and the training that
    follows in the same process would fail with "Inference tensors cannot be saved for backward".
    """
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient inside the block, so that a backward pass stores none; as before afterwards."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)


def input_device(model: nn.Module) -> torch.device:
    """Where token ids belong: the device of the input embedding, which a model spread over devices may have elsewhere."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embedding, "weight", None)
    if weight is None:
        weight = next(model.parameters(), None)
    return weight.device if weight is not None else torch.device("cpu")


def random_ids(model: Any, batch: int, seq_len: int) -> Tensor:
    """The same ids ``[batch, seq_len]`` every time, from a generator of their own."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (batch, seq_len), generator=torch.Generator().manual_seed(0))
    return ids.to(input_device(model))


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Removes hooks after the block, also those that were registered before another could not be."""
    with ExitStack() as hooks:
        for handle in handles:
            hooks.callback(handle.remove)
        yield


@contextmanager
def answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """The module returns the answer, whatever it is given, inside the block."""
    own = module.__dict__.get("forward")
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


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
    device, counted = input_device(model), torch.zeros(0)

    def hook(observer: Callable[..., None]) -> Callable[..., None]:
        return lambda *seen: observer(*seen, counted)

    handles = (module.register_forward_hook(hook(observer), with_kwargs=True) for module, observer in observers.items())
    with evaluation_mode(model), hooked(handles):
        for rows in batches(len(windows.input_ids), batch_size, progress):
            mask = windows.attention_mask[rows].to(device)
            counted = mask.float()
            model.base_model(input_ids=windows.input_ids[rows].to(device), attention_mask=mask, use_cache=False)
    tokens = int(windows.attention_mask.sum())
    if tokens == 0:
        raise DataError("windows: expected at least one calibration token to score the model on, got none; give longer texts")
    return tokens
