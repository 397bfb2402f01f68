"""Rotary embeddings whose frequencies were rounded together with the weights.

``model.bfloat16()``, and Lightning's ``precision: bf16-true`` or ``16-true``, cast every buffer of a model as well. transformers keeps the
frequencies of rotary embeddings in float32, whatever the weights are: in bfloat16 the fastest ones are off by up to a quarter of a radian
after a hundred positions, and the model that is trained or measured is not the one that a server loads.
"""

from __future__ import annotations

from torch import nn


def restore_rotary(model: nn.Module) -> int:
    """Computes rounded frequencies of rotary embeddings again, in place.

    Args:
        model: a Hugging Face causal LM, also inside other modules, on any device.

    Returns:
        How many buffers had been rounded.
    """
    found = 0
    for module in model.modules():
        rounded = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point() and buffer.itemsize < 4]
        if rounded and type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "config"):
            exact = dict(type(module)(module.config).named_buffers())
            for name in rounded:
                setattr(module, name, exact[name].to(getattr(module, name).device))
                found += 1
    return found
