"""Which text, and which layer, a loss or a gradient that is not finite comes from: looked for once it has happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.importance.finiteness import find_bad_gradient, find_bad_loss

#: Tokens of a text that are quoted.
_QUOTED = 12
_NAMES = ("input_ids", "labels", "attention_mask")


def blame_for_loss(model: nn.Module, batch: Any, where: str, tokenizer: Any = None) -> str:
    """Where a loss that is not finite comes from: ``, on sample 3 of WHERE ('...'), not finite from LAYER on``.

    Args:
        batch: ``input_ids``, ``labels`` and ``attention_mask``, each ``[b, t]``; with any other batch nothing is said.
        where: what the batch is called, such as ``batch 7``.
        tokenizer: quotes the sample's first words; ``None`` leaves them out.

    Returns:
        Words to put behind a message; empty where no sample shows it alone.
    """
    if not _is_known(batch):
        return ""
    found = find_bad_loss(model, batch)
    if found is None:
        return ""
    row, layer = found
    return f", on {_sample(batch, row, where, tokenizer)}, not finite from {_plain(layer)} on"


def blame_for_gradient(model: nn.Module, batch: Any, parameter: nn.Parameter, where: str, tokenizer: Any = None) -> str:
    """Where a parameter's gradient that is not finite comes from: ``, from sample 3 of WHERE ('...')``; see :func:`blame_for_loss`."""
    if not _is_known(batch):
        return ""
    with torch.enable_grad():
        row = find_bad_gradient(model, batch, parameter)
    return "" if row is None else f", from {_sample(batch, row, where, tokenizer)}"


def first_bad_gradient(parameters: Mapping[str, nn.Parameter]) -> str | None:
    """Name of the first parameter whose gradient has an inf or a nan; ``None`` where all are finite.

    Args:
        parameters: those that train, by name: to walk through all modules of a model at every step is a tenth of a step's time.
    """
    named = [(name, p.grad) for name, p in parameters.items() if p.grad is not None]
    norms = torch._foreach_norm([gradient for _, gradient in named]) if named else []
    if not named or bool(torch.isfinite(torch.stack([n.float() for n in norms])).all()):
        return None
    # A norm may overflow where no gradient does.
    return next((name for name, gradient in named if not bool(torch.isfinite(gradient).all())), None)


def loss_message(loss: Tensor, steps: int, blame: str) -> str:
    """The error's line for a loss that is not finite."""
    return (
        f"recovery: expected a finite loss, got {float(loss.detach())} after {steps} optimizer steps{blame}; "
        "lower the learning rate, set trainer.gradient_clip_val, or train in bfloat16 or float32"
    )


def gradient_message(name: str, steps: int, blame: str) -> str:
    """The error's line for a gradient that is not finite."""
    return (
        f"recovery: expected finite gradients, got inf or nan in {name} after {steps} optimizer steps{blame}; "
        "lower the learning rate, or train in bfloat16 or float32"
    )


def _is_known(batch: Any) -> bool:
    return isinstance(batch, Mapping) and all(name in batch for name in _NAMES)


def _sample(batch: Mapping[str, Tensor], row: int, where: str, tokenizer: Any) -> str:
    name = f"sample {row} of {where}"
    if tokenizer is None:
        return name
    words = " ".join(tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()][:_QUOTED].tolist()).split())
    return f"{name} ({words + ' ...'!r})"


def _plain(layer: str) -> str:
    """A layer's name in the model itself, without the wrapping of adapters."""
    return layer.removeprefix("base_model.model.").replace(".base_layer", "")
