"""Whole decoder layers: which ones change the residual stream least, and a model without them.

What is left is an ordinary, shallower model of the same class. Any family will do: a decoder layer adds to its input, so that
without it the input goes on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from adapruner.errors import ConfigurationError, DataError, ModelError, PlanError
from adapruner.importance.statistics import quiet
from adapruner.models.tracing import find_decoder_layers

#: Lists in configurations with one entry for each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers")
#: What makes layers differ by their place, or one layer use what another computed: a stock class would build another model.
_BY_PLACE = ("mlp_only_layers", "attention_types", "num_kv_shared_layers", "first_k_dense_replace", "scale_attn_by_inverse_layer_idx")


class Windows(Protocol):
    """The part of :class:`adapruner.data.windows.TextWindows` that is needed; both tensors are ``[n, seq_len]``."""

    input_ids: Tensor
    attention_mask: Tensor


def block_influence(model: Any, windows: Windows, *, batch_size: int = 8, progress: Callable[[int], None] | None = None) -> Tensor:
    """Block Influence of every decoder layer (ShortGPT, Men et al., arXiv 2403.03853): 1 - cosine of its input and output.

    Args:
        model: a Hugging Face causal LM; it is left as it was.
        windows: calibration samples; padding does not count.
        batch_size: samples in one forward pass, which keeps no activations.
        progress: called with the number of samples done.

    Returns:
        ``[layers]`` float64 in [0, 2]: the mean over tokens. A layer that turns the stream by nothing has 0.

    Raises:
        DataError: if there is no token.
        ModelError: if hidden states are not finite.
    """
    _, layers = find_decoder_layers(model)
    sums, place = torch.zeros(len(layers), dtype=torch.float64), {layer: index for index, layer in enumerate(layers)}

    def add(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any, counted: Tensor) -> None:
        before, after = _stream_in(arguments, keywords), output[0] if isinstance(output, tuple) else output
        cosine = cosine_similarity(before.float(), after.float(), dim=-1)
        sums[place[layer]] += (cosine * counted).sum().double().cpu()

    tokens = listen(model, dict.fromkeys(layers, add), windows, batch_size, progress)
    if not bool(torch.isfinite(sums).all()):
        raise ModelError("model: expected finite hidden states on the calibration windows, got others; load it in another dtype")
    return 1.0 - sums / tokens


def listen(
    model: Any,
    listeners: Mapping[nn.Module, Callable[..., None]],
    windows: Windows,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Runs the windows through the model, without logits; returns the number of tokens that are no padding.

    Args:
        listeners: module -> called with the module, its arguments, its keywords, its output, and ``[batch, seq_len]`` float32: 1
            for a token, 0 for padding.

    Raises:
        DataError: if there is no token.
    """
    device, tokens, done, counted = model.get_input_embeddings().weight.device, 0, 0, torch.zeros(0)
    with quiet(model), torch.no_grad(), ExitStack() as hooks:
        for module, listener in listeners.items():

            def hook(*seen: Any, call: Callable[..., None] = listener) -> None:
                call(*seen, counted)

            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for ids, mask in zip(windows.input_ids.split(batch_size), windows.attention_mask.split(batch_size), strict=True):
            counted = mask.to(device, torch.float32)
            model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            tokens += int(mask.sum())
            done += len(ids)
            if progress:
                progress(done)
    if tokens == 0:
        raise DataError("windows: expected at least one calibration token to judge the model by, got none; give longer texts")
    return tokens


def choose_layers(influence: Tensor, count: int, protected: Collection[int] = ()) -> list[int]:
    """The ``count`` layers of the lowest influence ``[layers]``, sorted by place; of equals the earlier one.

    Raises:
        ConfigurationError: if fewer than ``count`` layers are free, or none would stay.

    >>> choose_layers(torch.tensor([0.9, 0.2, 0.1, 0.5]), 2)
    [1, 2]
    """
    free = [layer for layer in range(len(influence)) if layer not in protected]
    most = min(len(free), len(influence) - 1)
    if not 0 <= count <= most:
        raise ConfigurationError(
            f"remove_layers: expected at most {most} of {len(influence)} layers, {len(influence) - len(free)} of them protected, "
            f"got {count}; remove fewer, or protect fewer"
        )
    return sorted(sorted(free, key=lambda layer: float(influence[layer]))[:count])


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
    """The model in which these layers hand on their input, inside the block: the reference for :func:`remove_layers`.

    The layers still run, and fill their part of a cache; what they compute is thrown away.
    """
    check_depth(model, removed)
    _, layers = find_decoder_layers(model)

    def hand_on(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        before = _stream_in(arguments, keywords)
        return (before, *output[1:]) if isinstance(output, tuple) else before

    with ExitStack() as hooks:
        for index in removed:
            hooks.callback(layers[index].register_forward_hook(hand_on, with_kwargs=True).remove)
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


def _stream_in(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    found: Tensor = arguments[0] if arguments else keywords["hidden_states"]
    return found


def _number(layer: nn.Module, before: int, now: int) -> None:
    """``layer_idx`` names the layer's place in the cache."""
    for module in layer.modules():
        if getattr(module, "layer_idx", None) == before:
            module.layer_idx = now  # type: ignore[assignment]
