"""Configuration of a decoder whose layers have widths of their own, in DeciLM's form, written by adapruner.

This file is copied into export folders and must stand alone: it imports transformers, nothing else. transformers has no such
configuration of its own, so engines read it by ``trust_remote_code``. The model is the engine's own ``DeciLMForCausalLM``.
"""

from typing import Any

from transformers import PretrainedConfig


class Named(dict):
    """A JSON object whose values can also be asked for as attributes, as engines do: ``block.attention.no_op``."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class DeciLMConfig(PretrainedConfig):
    """Llama's values, and ``block_configs``: for each layer, how many query heads share a KV head, and how wide the FFN is."""

    model_type = "nemotron-nas"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - as in transformers

    def __init__(self, block_configs: Any = (), **values: Any) -> None:
        super().__init__(**values)
        self.block_configs = [Named({part: Named(said) for part, said in block.items()}) for block in block_configs]
