"""Language models whose decoder layers have different widths or added biases, written by adapruner.

This file is copied into export folders and must stand alone: it imports torch and transformers, nothing else. In
``config.json``, ``pruned_shapes`` gives every tensor whose shape differs from what the stock class builds, and
``pruned_attributes`` what the layers' forwards read besides, both by the names in the causal language model.
``PrunedLlamaForCausalLM`` is ``LlamaForCausalLM`` with those, ``PrunedLlamaModel`` is ``LlamaModel``, the model without a head,
which serving engines build; so for every other class of transformers.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    AutoModel.from_pretrained(folder, trust_remote_code=True)  # also AutoModelForSequenceClassification, ...TokenClassification
"""

import logging
from typing import Any

import torch
import transformers
from torch import nn

PREFIX = "Pruned"
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModel")
"""By which a folder can be loaded, where transformers has such a class for the family."""


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Reading global config value for per-layer attribute")


# The classes below build the global widths first and then every layer's own: a warning of the first is nothing a user could act on.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(_is_news)


class LiveView:
    """A configuration with some values of its own. The rest is looked up when asked for: a copy would miss what is set later,
    such as the attention implementation, and with it the causal mask."""

    def __init__(self, base: Any, own: dict[str, Any]) -> None:
        self.__dict__.update(_base=base, **own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_base" not in self.__dict__:
            raise AttributeError(name)  # a copy or a pickle that is not filled yet
        return getattr(self._base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._base, name, value)


def resize_tensors(model: nn.Module, shapes: dict[str, list[int]]) -> None:
    """Gives the named tensors other shapes; one that is not there (an added bias) is made. Values are left to the loading."""
    for name, shape in shapes.items():
        owner, _, tensor = name.rpartition(".")
        module: Any = model.get_submodule(owner)
        like = getattr(module, tensor, None)
        like = next(module.parameters()) if like is None else like
        setattr(module, tensor, nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device)))
        if tensor == "weight" and isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif tensor == "weight" and hasattr(module, "nf"):  # Conv1D, whose weight lies the other way round
            module.nx, module.nf = shape


def set_attributes(model: nn.Module, attributes: dict[str, dict[str, Any]]) -> None:
    """Module name -> attribute -> value; ``config.x`` and ``alibi_heads`` as :mod:`adapruner.models.families.family` says."""
    for name, values in attributes.items():
        module: Any = model.get_submodule(name)
        views = {key.removeprefix("config."): value for key, value in values.items() if key.startswith("config.")}
        if views:
            module.config = LiveView(getattr(module.config, "_base", module.config), views)
        for key, value in values.items():
            if not key.startswith("config."):
                setattr(module, key, value)
        if "alibi_heads" in values and not getattr(module, "_picks_alibi", False):
            module._picks_alibi = True
            module.register_forward_pre_hook(_pick_alibi, with_kwargs=True)


def _pick_alibi(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The model makes ALiBi's slopes for all heads of the dense model, ``[batch * heads, 1, positions]``."""
    alibi = keywords.get("alibi")
    if alibi is None or module.alibi_heads is None:
        return None
    batch = (arguments[0] if arguments else keywords["hidden_states"]).shape[0]
    picked = alibi.view(batch, -1, *alibi.shape[1:])[:, module.alibi_heads]
    return arguments, {**keywords, "alibi": picked.flatten(0, 1)}


class PrunedLayers:
    """Mixed into a stock class: builds it, then brings it to the widths of its configuration before weights are loaded."""

    base_model: Any
    base_model_prefix: str

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        # A model with a head holds the layers in its base model; loaded without one, it is the base model itself.
        resize_tensors(self.base_model, self._in_base_model(config.pruned_shapes))
        set_attributes(self.base_model, self._in_base_model(config.pruned_attributes))

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: transformers would not convert tensors of a checkpoint (single experts into one) as the stock class needs them."""
        return False

    def _in_base_model(self, named: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(f"{self.base_model_prefix}."): value for name, value in named.items()}


def auto_class_of(name: str) -> str:
    """The Auto class that loads a class of transformers: ``AutoModelForCausalLM`` for ``GPT2LMHeadModel``."""
    if name.endswith("LMHeadModel"):
        return "AutoModelForCausalLM"
    return next(auto for auto in AUTO_CLASSES if name.endswith(auto.removeprefix("AutoModel")))


def __getattr__(name: str) -> Any:
    """``PrunedX``, made from ``X``: ``PrunedLlamaForCausalLM`` from ``LlamaForCausalLM``."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, (PrunedLayers, stock), {"__module__": __name__, "__doc__": f"{stock.__name__} with its own widths in each layer."})
    made.register_for_auto_class(auto_class_of(name))  # type: ignore[attr-defined]  # saved again, it carries this file along
    globals()[name] = made
    return made
