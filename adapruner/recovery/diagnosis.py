"""Which text, and which layer, a loss or a gradient that is not finite comes from: looked for once it has happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import ModelError
from adapruner.importance.finiteness import find_bad_gradient, find_bad_loss

#: Tokens of a text that are quoted.
_QUOTED = 12
_NAMES = ("input_ids", "labels", "attention_mask")


Suspect = tuple[Any, str, Any]
"""A batch of ``input_ids``, ``labels`` and ``attention_mask``, each ``[b, t]`` (of any other nothing is said), what it is called, such as
``batch 7``, and a tokenizer, which quotes a sample's first words; ``None`` leaves them out."""


def check_loss(loss: Tensor, model: nn.Module, steps: int, suspect: Callable[[], Suspect]) -> None:
    """Refuses a loss that is not finite before it makes every weight so.

    Args:
        loss: of the running batch.
        model: that it came from.
        steps: optimizer steps so far.
        suspect: gives the running batch.

    Raises:
        ModelError: naming the step and, where a sample of the batch shows it alone, the sample and the layer.
    """
    if bool(torch.isfinite(loss.detach()).all()):
        return
    batch, where, tokenizer = suspect()
    found = find_bad_loss(model, batch) if _is_known(batch) else None
    blame = "" if found is None else f", on {_sample(batch, found[0], where, tokenizer)}, not finite from {_plain(found[1])} on"
    raise ModelError(
        f"recovery: expected a finite loss, got {float(loss.detach())} after {steps} optimizer steps{blame}; "
        "lower the learning rate, set trainer.gradient_clip_val, train in bfloat16 or float32, or leave out rows without a token to predict"
    )


def check_gradients(parameters: Mapping[str, nn.Parameter], model: nn.Module | None, steps: int, suspect: Callable[[], Suspect]) -> None:
    """Refuses gradients that are not finite; arguments as of :func:`check_loss`, and the parameters that train, by name.

    Raises:
        ModelError: naming the first parameter, the step and, where a sample of the last batch shows it alone, the sample.
    """
    bad = first_bad_gradient(parameters)
    if bad is None:
        return
    (batch, where, tokenizer), row = suspect(), None
    if model is not None and _is_known(batch):
        with torch.enable_grad():
            row = find_bad_gradient(model, batch, parameters[bad])
    blame = "" if row is None else f", from {_sample(batch, row, where, tokenizer)}"
    raise ModelError(
        f"recovery: expected finite gradients, got inf or nan in {bad} after {steps} optimizer steps{blame}; "
        "lower the learning rate, or train in bfloat16 or float32"
    )


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
