"""What a recovery trains: low-rank adapters, which are merged at its end, or the layers' own weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapruner.errors import ConfigurationError, nearest
from adapruner.models.tracing import find_decoder_layers
from adapruner.recovery.beside_adapters import parameters_beside
from adapruner.recovery.lora import LoRAConfig, attach_lora, check_adapters
from adapruner.recovery.merging import merge_lora

RecoveryForm = Literal["lora", "full"]
FORMS: tuple[RecoveryForm, ...] = ("lora", "full")


def check_form(form: str) -> None:
    """Refuses a form of recovery that there is not.

    Raises:
        ConfigurationError: with the nearest.
    """
    if form not in FORMS:
        raise ConfigurationError(f"recovery.form: expected a known form, got {form!r}; {nearest(form, FORMS)}")


def check_trainable(model: nn.Module, form: RecoveryForm, lora: LoRAConfig) -> None:
    """Refuses a form that could not train this model.

    Raises:
        ConfigurationError: for adapters, as :func:`adapruner.recovery.lora.check_adapters`; for whole weights of 16 bits, to which a step
            of a usual learning rate is less than half of their last digit.
    """
    check_adapters(model, lora if form == "lora" else LoRAConfig(r=1, checkpoint_activations=lora.checkpoint_activations))
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    if form == "full" and kinds:
        raise ConfigurationError(
            f"recovery.form: expected lora for weights of 16 bits, which round the steps of full fine-tuning away, got full for "
            f"{' and '.join(sorted(kinds))}; load the model in float32 (and train with precision bf16-mixed), or choose lora"
        )


def make_trainable(model: Any, form: RecoveryForm, lora: LoRAConfig) -> Any:
    """The (pruned) model in training mode with only what the form trains asking for gradients: adapters around its linear layers, or every
    parameter of its decoder layers. Embeddings, the last norm and the head stay as they are.

    >>> from adapruner.models.loading import load_language_model
    >>> model = make_trainable(load_language_model("demo"), "full", LoRAConfig())
    >>> sorted({name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad})
    ['layers']
    """
    if form == "lora":
        return attach_lora(model, lora).train()
    model.requires_grad_(False)
    _, layers = find_decoder_layers(model)
    layers.requires_grad_(True)
    return model.train()


def copy_of_trained(model: Any, form: RecoveryForm, lora: LoRAConfig) -> dict[str, Tensor]:
    """Name -> a copy on the CPU, of every parameter of the model itself that a training changes."""
    prefix, layers = find_decoder_layers(model)
    whole = {f"{prefix}.{name}": p for name, p in layers.named_parameters()} if form == "full" else {}
    return {name: p.detach().to("cpu", copy=True) for name, p in (whole or parameters_beside(model, lora.also_train)).items()}


def make_plain(model: Any) -> nn.Module:
    """An ordinary model again, all of whose parameters train: adapters are merged; after full fine-tuning there is nothing to merge."""
    merged = merge_lora(model)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged
