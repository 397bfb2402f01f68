"""How every measurement treats a model: evaluation mode, no gradients, and everything put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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


def input_device(model: nn.Module) -> torch.device:
    """Where token ids belong: the device of the input embedding, which a model spread over devices may have elsewhere."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embedding, "weight", None)
    if weight is None:
        weight = next(model.parameters(), None)
    return weight.device if weight is not None else torch.device("cpu")
