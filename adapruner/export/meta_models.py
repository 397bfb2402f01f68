"""Models without values, on the meta device: what a configuration builds, and the dense model that a pruned one was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from adapruner.errors import ModelError
from adapruner.models.families import LayerShape, family_of
from adapruner.models.shapes import narrow_to
from adapruner.models.units import ModelStructure

_NOT_CARRIED = (
    *("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "auto_map", "_name_or_path", "output_bias"),
    *("per_layer_config", "allow_global_per_layer_attribute_access", "pruned_shapes", "pruned_attributes"),
)


def make_config(model: Any, model_type: str, changes: Mapping[str, Any] | None = None, dropped: tuple[str, ...] = ()) -> Any:
    """The model's configuration as ``model_type``, with some values changed and some left out."""
    from transformers import AutoConfig

    values = {key: value for key, value in model.config.to_dict().items() if key not in (*_NOT_CARRIED, *dropped)}
    # Training may untie what the configuration calls tied; loading would then drop the output layer.
    values |= {**(changes or {}), "tie_word_embeddings": model.get_output_embeddings().weight is model.get_input_embeddings().weight}
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        if "Unrecognized model" not in str(error):
            raise
        raise ModelError(f"model: expected a family of transformers, got {model_type!r}; save it with its own save_pretrained") from None


def build_on_meta(config: Any, model_class: Any = None) -> Any:
    """A model without values, of the class that transformers has for the configuration unless another is given.

    Raises:
        ModelError: if it has none.
    """
    from transformers import AutoModelForCausalLM

    known = AutoModelForCausalLM._model_mapping
    if model_class is None and type(config) not in known:
        raise ModelError(
            f"model: expected a class of transformers, got one with the configuration {type(config).__name__}; "
            "save it with its own save_pretrained, beside plan.json"
        )
    with torch.device("meta"):
        return (model_class or known[type(config)])(config)


def dense_on_meta(model: Any, structure: ModelStructure) -> Any:
    """The stock class at the widths that the configuration gave every layer before pruning: surgery may have changed them there."""
    family, shape = family_of(structure.model_type), structure.configured
    return build_on_meta(make_config(model, structure.model_type, named_widths(model.config, structure, shape, family.head_counts)))


def at_widths(model: Any, structure: ModelStructure, output_bias: bool = False) -> Any:
    """The model that a structure describes, in the linear form of its family: every coupled tensor has the structure's size.

    Args:
        model: whose configuration says the rest.
        structure: dense or pruned.
        output_bias: every output projection has a bias, not only those that the structure knows of.
    """
    found = dense_on_meta(model, structure)
    narrow_to(found, structure)
    for group in structure.groups if output_bias else ():
        output = found.get_submodule(group.output.module)
        if output.bias is None:
            output.bias = nn.Parameter(output.weight.new_zeros(output.weight.shape[0]))
    return found


def named_widths(config: Any, structure: ModelStructure, shape: LayerShape, head_dim: bool = False) -> dict[str, int]:
    """A layer's widths in the configuration's own names, as far as it has them; ``head_dim`` is named only where asked for."""
    family = family_of(structure.model_type)
    values = {"num_attention_heads": shape.query_heads, "num_key_value_heads": shape.key_value_heads}
    values |= {name: value for name, value in ((family.ffn_name, shape.ffn), (family.experts_name, shape.experts)) if name}
    known = {key: value for key, value in values.items() if value and hasattr(config, key)}
    return {**known, "head_dim": shape.head_dim} if head_dim and shape.head_dim else known
