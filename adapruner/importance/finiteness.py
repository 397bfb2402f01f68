"""Weights and activations that are not numbers: found before they spread, and named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import ModelError
from adapruner.models.forward import evaluation_mode, hooked


def check_weights(model: nn.Module) -> None:
    """One pass over the parameters.

    Raises:
        ModelError: naming the first parameter with inf or nan, and how many have it.
    """
    bad = [(name, p) for name, p in model.named_parameters() if p.is_floating_point() and not _is_finite(p.detach())]
    if bad:
        name, parameter = bad[0]
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ModelError(f"model: expected finite weights, got {_kind(parameter)} in {name}{more}; {_remedy(parameter)}")


def check_activations(model: nn.Module, windows: Any, sample: int = 0) -> None:
    """One forward pass of one calibration sample, ``[1, seq_len]``.

    Raises:
        ModelError: naming the first layer whose output is not finite.
    """
    device = next(model.parameters()).device
    ids, mask = (t[sample : sample + 1].to(device) for t in (windows.input_ids, windows.attention_mask))
    with evaluation_mode(model):
        if bool(torch.isfinite(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]).all()):
            return
        layer = first_not_finite(model, ids, mask)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    raise ModelError(
        f"model: expected finite activations, got inf or nan from {layer} on, on calibration sample {sample} in {dtype}; "
        f"{'give --model.dtype bfloat16 or float32' if dtype == 'float16' else 'check the weights'}"
    )


def first_not_finite(model: nn.Module, ids: Tensor, mask: Tensor) -> str:
    """The first module, in the order of the forward pass, whose output has inf or nan at a token; ``the loss`` if none has."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and output.is_floating_point() and not _is_finite(output):
                found.append(name)

        return look

    leaves = ((name, module) for name, module in model.named_modules() if next(module.children(), None) is None)
    with torch.no_grad(), hooked(module.register_forward_hook(hook(name)) for name, module in leaves):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return found[0] if found else "the loss"


def find_bad_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """The first row of a batch whose loss is inf or nan alone, and the layer where that begins; ``None`` if no row's is.

    Args:
        model: a causal language model of Hugging Face's kind, used in the mode that it is in.
        batch: ``input_ids``, ``labels`` and ``attention_mask``, each ``[b, t]``, on any device.
    """
    for row, inputs in _rows(model, batch):
        with torch.no_grad():
            loss = model(**inputs, use_cache=False).loss
        if bool((inputs["labels"][:, 1:] != -100).any()) and not _is_finite(loss):
            return row, first_not_finite(model, inputs["input_ids"], inputs["attention_mask"])
    return None


def find_bad_gradient(model: nn.Module, batch: Mapping[str, Tensor], parameter: nn.Parameter) -> int | None:
    """The first row of a batch that alone gives ``parameter`` an inf or nan; gradients that are there stay as they are.

    Args:
        model: as for :func:`find_bad_loss`.
        batch: as there.
        parameter: of the model.
    """
    for row, inputs in _rows(model, batch):
        (gradient,) = torch.autograd.grad(model(**inputs, use_cache=False).loss, parameter, allow_unused=True)
        if gradient is not None and not _is_finite(gradient):
            return row
    return None


def _rows(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    device = next(model.parameters()).device
    for row in range(len(batch["input_ids"])):
        yield row, {name: batch[name][row : row + 1].to(device) for name in ("input_ids", "labels", "attention_mask")}


def _is_finite(tensor: Tensor) -> bool:
    """A finite sum needs no second look and no copy; a sum that overflows does."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _kind(parameter: Tensor) -> str:
    return "nan" if bool(torch.isnan(parameter).any()) else "inf"


def _remedy(parameter: Tensor) -> str:
    overflowed = parameter.dtype == torch.float16 and not bool(torch.isnan(parameter).any())
    return "they do not fit into float16: give --model.dtype bfloat16 or float32" if overflowed else "restore the weights"
