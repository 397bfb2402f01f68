"""LoRA recovery: low-rank adapters on the pruned model, trained, then merged (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adapruner.argument_checks import check_fields
from adapruner.errors import ConfigurationError, nearest
from adapruner.recovery.beside_adapters import PARTS, check_parts, parameters_beside


@dataclass(frozen=True)
class LoRAConfig:
    """LLM-Pruner's recovery settings by default (arXiv 2305.11627, section 4.1).

    >>> LoRAConfig(r=16, target_modules=["q_proj", "v_proj"]).r
    16
    """

    r: int = 8
    """Rank of each adapter."""
    alpha: int = 16
    """Scale: adapters are multiplied by alpha / r."""
    dropout: float = 0.05
    """On the adapters' inputs, in training only."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; ``all-linear``: every linear layer of the decoder."""
    checkpoint_activations: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: a fraction of the memory, about a third more time,
    the same gradients."""
    also_train: list[str] = field(default_factory=list)
    """What trains as it is beside the adapters, at the same learning rate: ``norms``, ``biases`` of linear layers. In float32 only: 16 bits
    round such steps away."""

    def __post_init__(self) -> None:
        check_fields(self, "lora.")
        if self.r < 1 or self.alpha < 1:
            raise ConfigurationError(f"lora: expected r and alpha of 1 or more, got {self.r} and {self.alpha}; give 8 and 16")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigurationError(f"lora.dropout: expected a number in [0, 1), got {self.dropout}; give 0.05")
        for part in self.also_train:
            if part not in PARTS:
                raise ConfigurationError(f"lora.also_train: expected parts out of {', '.join(PARTS)}, got {part!r}; {nearest(part, PARTS)}")


def attach_lora(model: nn.Module, config: LoRAConfig) -> Any:
    """Wraps the (pruned) model with adapters; only they train from here on. Merging at once changes nothing.

    Raises:
        ConfigurationError: if no layer has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # peft asks by a name that transformers renames: nothing that a user could act on
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated", category=FutureWarning)
            adapted = get_peft_model(model, settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigurationError(
            f"lora.target_modules: expected names of linear layers, got {config.target_modules!r} ({str(error)[:120]}); give all-linear"
        ) from error
    for parameter in parameters_beside(adapted, config.also_train).values():
        parameter.requires_grad_(True)
    return adapted


@contextmanager
def activations_as_configured(model: Any, config: LoRAConfig) -> Iterator[None]:
    """Inside the block the layers' activations are computed again in the backward pass, instead of kept, where the configuration says so
    (Chen et al., arXiv 1604.06174).

    Args:
        model: a Hugging Face causal LM, with or without adapters; afterwards it is as it was.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not config.checkpoint_activations or any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        yield
        return
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        base.gradient_checkpointing_disable()


def check_adapters(model: nn.Module, lora: LoRAConfig) -> None:
    """Names of layers that get adapters: peft passes over one that is misspelt, as long as another is there.

    Raises:
        ConfigurationError: if no linear layer has such a name, there is nothing of what is to train beside them, or only in 16 bits, or the
            model cannot compute activations again where that is asked for.
    """
    if lora.checkpoint_activations and not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigurationError(
            f"recovery.lora.checkpoint_activations: expected a model that can, got {type(model).__name__}, which cannot; leave it out"
        )
    check_parts(model, lora.also_train)
    layers = [n for n, m in model.named_modules() if next(m.children(), None) is None and getattr(m, "weight", None) is not None]
    most = max((min(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)), default=lora.r)
    if lora.r > most:
        raise ConfigurationError(f"recovery.lora.r: expected at most {most}, the rank of the model's largest layer, got {lora.r}; give 8")
    targets = lora.target_modules
    if targets == "all-linear":
        return
    if isinstance(targets, str):  # a pattern of whole names
        unknown = [] if any(re.fullmatch(targets, name) for name in layers) else [targets]
    else:
        unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in layers)]
    if unknown or not targets:
        got = unknown[0] if unknown else "none"
        hint = nearest(got, {name.split(".")[-1] for name in layers})
        raise ConfigurationError(f"recovery.lora.target_modules: expected layers of the model, got {got!r}; {hint}")


def describe_lora(adapted: Any) -> dict[str, Any]:
    """The fields of the :class:`LoRAConfig` that an adapted model was made with, as JSON types."""
    settings = adapted.peft_config["default"]
    targets = settings.target_modules
    return {
        "r": settings.r,
        "alpha": settings.lora_alpha,
        "dropout": settings.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "also_train": [part for part in PARTS if any(p.requires_grad for p in parameters_beside(adapted, [part]).values())],
    }
