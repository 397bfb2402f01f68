"""Causal language models whose decoder layers have different widths or added biases, written by adapruner.

This file is copied into export folders and must stand alone: it imports torch and transformers, nothing else. The
widths of each layer are in ``config.json`` under ``per_layer_config``; the stock classes build every layer alike. Where
``output_bias`` is true, every o_proj and down_proj has a bias.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM


def use_layer_widths(model: PreTrainedModel) -> None:
    """Builds every decoder layer anew from its own configuration, with the biases it asks for, before weights are loaded."""
    layers = model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = type(layer)(model.config.per_layer_config[index], index)
        for module in layers[index].modules():
            # A layer's configuration is a copy: the attention implementation chosen later would be set on the model's
            # own one only, and the layer would go on without the causal mask that belongs to it.
            if isinstance(getattr(module, "config", None), PreTrainedConfig):
                module.config = model.config
        if getattr(model.config, "output_bias", False):
            for linear in (layers[index].self_attn.o_proj, layers[index].mlp.down_proj):
                if linear.bias is None:
                    linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


class PrunedLlamaForCausalLM(LlamaForCausalLM):
    """Llama with its own widths in each layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        use_layer_widths(self)


class PrunedMistralForCausalLM(MistralForCausalLM):
    """Mistral with its own widths in each layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        use_layer_widths(self)


class PrunedQwen2ForCausalLM(Qwen2ForCausalLM):
    """Qwen2 with its own widths in each layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        use_layer_widths(self)


class PrunedQwen3ForCausalLM(Qwen3ForCausalLM):
    """Qwen3 with its own widths in each layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        use_layer_widths(self)


# Registered classes carry this file along when the model is saved again.
for pruned_class in (PrunedLlamaForCausalLM, PrunedMistralForCausalLM, PrunedQwen2ForCausalLM, PrunedQwen3ForCausalLM):
    pruned_class.register_for_auto_class("AutoModelForCausalLM")
