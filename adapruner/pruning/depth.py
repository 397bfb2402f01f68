"""Whole decoder layers: a choice of those that go, and a model without them.

What is left is an ordinary, shallower model of the same class. Any family will do: a decoder layer adds to its input, so that
without it the input goes on as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from adapruner.errors import ConfigurationError, ModelError, PlanError
from adapruner.models.forward import hooked
from adapruner.models.tracing import find_decoder_layers

#: Lists in configurations with one entry for each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")
#: What makes layers differ by their place, or one layer use what another computed: a stock class would build another model.
_BY_PLACE = ("mlp_only_layers", "attention_types", "num_kv_shared_layers", "first_k_dense_replace", "scale_attn_by_inverse_layer_idx")


def choose_layers(scores: Tensor, count: int, protected: Collection[int] = ()) -> list[int]:
    """The ``count`` layers of the lowest scores ``[layers]``, sorted by place; of equals the earlier one.

    Raises:
        ConfigurationError: if fewer than ``count`` layers are free, or none would stay.

    >>> import torch
    >>> choose_layers(torch.tensor([0.9, 0.2, 0.1, 0.5]), 2)
    [1, 2]
    """
    free = [layer for layer in range(len(scores)) if layer not in protected]
    most = min(len(free), len(scores) - 1)
    if not 0 <= count <= most:
        raise ConfigurationError(
            f"remove_layers: expected at most {most} of {len(scores)} layers, {len(scores) - len(free)} of them protected, "
            f"got {count}; remove fewer, or protect fewer"
        )
    return sorted(sorted(free, key=lambda layer: float(scores[layer]))[:count])


def remove_layers(model: Any, removed: Collection[int]) -> None:
    """Takes whole decoder layers out, in place: the list is made anew, layers are numbered again, the configuration follows.

    The layers that stay are the same modules with the same parameters and hooks.

    Args:
        removed: indices of layers, in the model's numbering.

    Raises:
        PlanError: if there is no such layer, or none would stay.
        ModelError: if the family's layers differ by their place in a way that a shallower model of the class would not have.
    """
    check_depth(model, removed)
    if not removed:
        return
    path, layers = find_decoder_layers(model)
    stay = [index for index in range(len(layers)) if index not in set(removed)]
    for name in _PER_LAYER:
        listed = getattr(model.config, name, None)
        if isinstance(listed, list | tuple) and len(listed) == len(layers):
            setattr(model.config, name, [listed[index] for index in stay])
    model.config.num_hidden_layers = len(stay)
    model.set_submodule(path, nn.ModuleList([layers[index] for index in stay]))
    for now, before in enumerate(stay):
        _number(layers[before], before, now)


@contextmanager
def without_layers(model: Any, removed: Collection[int]) -> Iterator[Any]:
    """The model without these layers inside the block (:func:`remove_layers`); they are back afterwards."""
    path, layers = find_decoder_layers(model)
    names = ("num_hidden_layers", *(name for name in _PER_LAYER if hasattr(model.config, name)))
    before = {name: getattr(model.config, name) for name in names}
    stay = [index for index in range(len(layers)) if index not in set(removed)]
    remove_layers(model, removed)
    try:
        yield model
    finally:
        for now, index in reversed(list(enumerate(stay))):
            _number(layers[index], now, index)
        model.set_submodule(path, layers)
        for name, value in before.items():
            setattr(model.config, name, value)


@contextmanager
def skipped_layers(model: Any, removed: Collection[int]) -> Iterator[Any]:
    """The model in which these layers give back their input, inside the block: the reference for :func:`remove_layers`.

    The layers still run, and fill their part of a cache; what they compute is thrown away.
    """
    check_depth(model, removed)
    _, layers = find_decoder_layers(model)

    def pass_input_on(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        before = arguments[0] if arguments else keywords["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple) else before

    with hooked(layers[index].register_forward_hook(pass_input_on, with_kwargs=True) for index in removed):
        yield model


def check_depth(model: Any, removed: Collection[int]) -> None:
    """Refuses, before anything is touched, what :func:`remove_layers` cannot do; errors as there."""
    _, layers = find_decoder_layers(model)
    if not set(removed) <= set(range(len(layers))) or len(set(removed)) == len(layers):
        raise PlanError(f"removed_layers: expected some of {len(layers)} layers and not all, got {sorted(removed)}; give indices from 0 on")
    place = next((name for name in _BY_PLACE if getattr(model.config, name, None)), None)
    if removed and (place or getattr(model.config, "decoder_sparse_step", 1) != 1):
        raise ModelError(
            f"model: expected layers that do not depend on their place to remove some, got {place or 'decoder_sparse_step'} in the "
            f"configuration of {type(model).__name__}; leave remove_layers at 0"
        )


def _number(layer: nn.Module, before: int, now: int) -> None:
    """``layer_idx`` names the layer's place in the cache."""
    for module in layer.modules():
        if getattr(module, "layer_idx", None) == before:
            module.layer_idx = now  # type: ignore[assignment]
