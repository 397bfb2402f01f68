"""Facts about the model families an export can be written for. A new family is one line here and one class in ``modeling_adapruner.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapruner.errors import ModelError, nearest


@dataclass(frozen=True)
class Family:
    """What export must know of one ``model_type``."""

    pruned_class: str
    """The class in ``modeling_adapruner.py`` that holds layers of different widths."""
    twin: str | None = None
    """A ``model_type`` with the same tensors and maths whose configuration accepts any number of heads."""
    twin_changes: tuple[tuple[str, Any], ...] = ()
    """Configuration values that make the twin compute the same."""
    twin_lacks: tuple[str, ...] = ()
    """Switches the twin does not have: it can stand in only where they are all off."""
    output_bias_switches: tuple[tuple[str, str], ...] = ()
    """Output projection -> the switch in the configuration that gives it a bias. The same switch gives one to the other
    linear layers of its block. A projection that is not named never has a bias in the stock class."""


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "PrunedLlamaForCausalLM",
        twin="mistral",
        twin_changes=(("sliding_window", None),),
        twin_lacks=("attention_bias", "mlp_bias"),
        output_bias_switches=(("o_proj", "attention_bias"), ("down_proj", "mlp_bias")),
    ),
    "mistral": Family("PrunedMistralForCausalLM"),
    "qwen2": Family("PrunedQwen2ForCausalLM"),
    "qwen3": Family("PrunedQwen3ForCausalLM", output_bias_switches=(("o_proj", "attention_bias"),)),
}


def family_of(model_type: str) -> Family:
    """The facts of one family.

    Raises:
        ModelError: if the family is not in the table.
    """
    if model_type not in FAMILIES:
        raise ModelError(f"model_type: expected a family that can be exported, got {model_type!r}; {nearest(model_type, FAMILIES)}")
    return FAMILIES[model_type]
