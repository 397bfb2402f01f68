"""The class an export names and the configuration that builds it: a stock class where one can hold the tensors.

Whether it can is not looked up but tried: the class is built from the configuration on the meta device, and its tensors must
have the pruned model's names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapruner.errors import ModelError
from adapruner.export.widths import dense_shape, layer_widths, named_widths, zero_biases
from adapruner.models.families import LayerShape, family_of, modeling_adapruner
from adapruner.models.shapes import layer_attributes
from adapruner.models.tracing import find_decoder_layers
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import plan_shape

_NOT_CARRIED = (
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "auto_map",
    "per_layer_config",
    "allow_global_per_layer_attribute_access",
    "pruned_shapes",
    "pruned_attributes",
    "_name_or_path",
    "output_bias",
)


@dataclass
class Target:
    """What will be saved."""

    model: Any
    """Built on the meta device; takes ``state``."""
    state: dict[str, Tensor]
    stock: bool
    """Whether a class of ``transformers`` reads it by itself."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the export should know."""


def dense_twin(model: Any, structure: ModelStructure) -> Any:
    """The family's stock class at the dense widths, on the meta device."""
    config = dense_config(model, structure)
    return build_on_meta(_stock_class(config), config)


def linear_twin(model: Any, structure: ModelStructure) -> Any:
    """The same in the linear form of its family."""
    twin = dense_twin(model, structure)
    family_of(structure.model_type).linear_form(twin)
    return twin


def dense_config(model: Any, structure: ModelStructure) -> Any:
    """The configuration before pruning."""
    family, shape = family_of(structure.model_type), dense_shape(structure)
    widths = named_widths(model.config, structure, shape)
    return make_config(model, structure.model_type, {**widths, **_head_dim(family.head_counts, shape)})


def choose_target(model: Any, structure: ModelStructure, plan: PruningPlan, dense: Any) -> Target:
    """In order: the family's own class, its twin, our modelling file, in which each layer has widths of its own.

    Args:
        model: pruned by ``plan``, in the linear form of its family.
        dense: as :func:`dense_twin` makes it.
    """
    family, notes = family_of(structure.model_type), []
    state = dict(family.stock_state(model.state_dict(), model.config))
    if plan.output_bias:
        notes.append("output projections have biases that make up for removed units on average (FLAP, arXiv 2312.11983)")
    shapes = [plan_shape(structure, plan, layer) for layer in range(structure.layers)]
    uniform = len({(s.query_heads, s.key_value_heads, s.ffn, s.experts) for s in shapes}) == 1
    if uniform:
        found = _own_class(model, structure, plan, state, shapes[0], notes) or _twin(model, structure, plan, state, shapes[0], notes)
        if found is not None:
            return found
    return _own_file(model, structure, plan, dense, state, notes, uniform)


def make_config(model: Any, model_type: str, changes: Mapping[str, Any], dropped: tuple[str, ...] = ()) -> Any:
    """The model's configuration as ``model_type``, with some values changed and some left out."""
    from transformers import AutoConfig

    values = {key: value for key, value in model.config.to_dict().items() if key not in (*_NOT_CARRIED, *dropped)} | dict(changes)
    # Training may untie what the configuration calls tied; loading would then drop the output layer.
    values["tie_word_embeddings"] = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        if "Unrecognized model" not in str(error):
            raise
        raise ModelError(f"model: expected a family of transformers, got {model_type!r}; save it with its own save_pretrained") from None


def build_on_meta(model_class: Any, config: Any) -> Any:
    """A model without values."""
    with torch.device("meta"):
        return model_class(config)


def _own_class(
    model: Any, structure: ModelStructure, plan: PruningPlan, state: dict[str, Tensor], shape: LayerShape, notes: list[str]
) -> Target | None:
    family = family_of(structure.model_type)
    switches = _bias_switches(structure) if plan.output_bias else {}
    if switches is None:
        notes.append(f"the stock class of {structure.model_type} has no biases there")
        return None
    values = {**named_widths(model.config, structure, shape), **_head_dim(family.head_counts, shape), **switches}
    try:
        config = make_config(model, structure.model_type, values)
        target = build_on_meta(_stock_class(config), config)
    except _refusals() as error:
        notes.append(f"the {structure.model_type} configuration refuses {shape.query_heads} heads ({_last_line(error)})")
        return None
    full = {**state, **(zero_biases(model, structure, target.state_dict()) if plan.output_bias else {})}
    if difference(target, full):
        notes.append(f"the stock class of {structure.model_type} cannot be told of these widths")
        return None
    if plan.output_bias and not all(getattr(model.config, switch, False) for switch in switches):
        notes.append(f"{' and '.join(switches)} switched on for them; biases the base model did not have elsewhere are zero")
    return Target(target, full, True, notes)


def _twin(
    model: Any, structure: ModelStructure, plan: PruningPlan, state: dict[str, Tensor], shape: LayerShape, notes: list[str]
) -> Target | None:
    family = family_of(structure.model_type)
    if plan.output_bias or family.twin is None or any(getattr(model.config, switch, False) for switch in family.twin_lacks):
        return None
    values = {**named_widths(model.config, structure, shape), **_head_dim(True, shape), **dict(family.twin_changes)}
    config = make_config(model, family.twin, values, family.twin_lacks)
    target = build_on_meta(_stock_class(config), config)
    if difference(target, state):
        return None
    notes.append(f"written as {config.model_type}, which has the same tensors and computes the same")
    return Target(target, state, True, notes)


def _own_file(
    model: Any, structure: ModelStructure, plan: PruningPlan, dense: Any, state: dict[str, Tensor], notes: list[str], uniform: bool
) -> Target:
    reason = notes.pop() if uniform else "layers have widths of their own"
    notes.append(f"{reason}: loading needs trust_remote_code=True, or adapruner.load")
    config = dense_config(model, structure)
    before = {name: tuple(tensor.shape) for name, tensor in dense.state_dict().items()}
    config.pruned_shapes = {name: list(t.shape) for name, t in state.items() if before.get(name) != tuple(t.shape)}
    config.pruned_attributes = pruned_attributes(model, structure, plan)
    widths = layer_widths(model.config, structure, plan)
    if family_of(structure.model_type).head_counts and len(widths[0]) > 1:  # the names that transformers itself gives to such widths
        config.allow_global_per_layer_attribute_access = True
        config.per_layer_config = dict(enumerate(widths))
    target_class = getattr(modeling_adapruner, f"{modeling_adapruner.PREFIX}{type(dense).__name__}", None)
    if target_class is None:
        raise ModelError(
            f"model: expected a class of transformers for layers of different widths, got {type(dense).__name__}; "
            "prune with allocation.method uniform, or export with pad"
        )
    target = build_on_meta(target_class, config)
    return Target(target, state, False, notes)


def pruned_attributes(model: Any, structure: ModelStructure, plan: PruningPlan) -> dict[str, dict[str, Any]]:
    """Module -> attribute -> value, for every layer that lost something."""
    path, _ = find_decoder_layers(model)
    found = {}
    for layer in range(structure.layers):
        if any(not plan.keeps_all(group) for group in structure.of_layer(layer)):
            for inside, values in layer_attributes(model.config, structure, layer, plan.kept).items():
                found[f"{path}.{layer}.{inside}"] = values
    return found


def difference(target: Any, state: Mapping[str, Tensor]) -> str:
    """The first tensor that is not of the same shape in both; empty where all are."""
    wanted = {name: tuple(tensor.shape) for name, tensor in target.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return next((name for name in [*wanted, *got] if wanted.get(name) != got.get(name)), "")


def _bias_switches(structure: ModelStructure) -> dict[str, bool] | None:
    """The values that give every output projection a bias in the family's own class; None if it has no switch for one."""
    known = dict(family_of(structure.model_type).output_bias_switches)
    roles = dict.fromkeys(group.output.role for group in structure.groups)
    return {known[role]: True for role in roles} if roles.keys() <= known.keys() else None


def _head_dim(said: bool, shape: LayerShape) -> dict[str, int]:
    return {"head_dim": shape.head_dim} if said and shape.head_dim else {}


def _stock_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise ModelError(
            f"model: expected a class of transformers, got one with the configuration {type(config).__name__}; "
            "save it with its own save_pretrained, beside plan.json"
        ) from None


def _refusals() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError

    return (ValueError, StrictDataclassError)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
