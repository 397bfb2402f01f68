"""The class an export names and the configuration that builds it: a stock class where one can hold the tensors.

Whether it can is not looked up but tried: the class is built from the configuration on the meta device, and its tensors must
have the pruned model's names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from adapruner.errors import ModelError
from adapruner.export.auto_map import auto_map_of
from adapruner.export.meta_models import build_on_meta, dense_on_meta, make_config, named_widths
from adapruner.models.families import LayerShape, family_of, modeling_adapruner
from adapruner.models.shapes import layer_attributes, whole_shape
from adapruner.models.tracing import find_decoder_layers
from adapruner.models.units import ModelStructure


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


def choose_target(model: Any, structure: ModelStructure, output_bias: bool = False) -> Target:
    """In order: the family's own class, an equivalent one, our modelling file, in which each layer has widths of its own.

    Args:
        model: the pruned model, in the linear form of its family.
        structure: of the pruned model.
        output_bias: whether every output projection has a bias that makes up for removed units.

    Raises:
        ModelError: if none of them can hold the tensors.
    """
    state = dict(family_of(structure.model_type).stock_state(model.state_dict(), model.config))
    notes = ["output projections have biases that make up for removed units on average (FLAP, arXiv 2312.11983)"] * output_bias
    shapes = [whole_shape(structure, layer) for layer in range(structure.layers)]
    reason = "layers have widths of their own"
    if len({(s.query_heads, s.key_value_heads, s.ffn, s.experts) for s in shapes}) == 1:
        target, reason = _own_class(model, structure, output_bias, state, shapes[0], notes)
        target = target or _equivalent(model, structure, output_bias, state, shapes[0], [*notes, reason])
        if target is not None:
            return target
    notes.append(f"{reason}: loading needs trust_remote_code=True, or adapruner.load")
    return _own_file(model, structure, state, shapes, notes)


def _own_class(
    model: Any, structure: ModelStructure, output_bias: bool, state: dict[str, Tensor], shape: LayerShape, notes: list[str]
) -> tuple[Target | None, str]:
    """The family's stock class, or why it does not do."""
    from huggingface_hub.errors import StrictDataclassError

    family = family_of(structure.model_type)
    known, roles = dict(family.output_bias_switches), {group.output.role for group in structure.groups}
    if output_bias and not roles <= known.keys():
        return None, f"the stock class of {structure.model_type} has no biases there"
    switches = {known[group.output.role]: True for group in structure.groups} if output_bias else {}
    try:
        widths = named_widths(model.config, structure, shape, family.head_counts)
        target = build_on_meta(make_config(model, structure.model_type, {**widths, **switches}))
    except (ValueError, StrictDataclassError) as error:
        return (
            None,
            f"the {structure.model_type} configuration refuses {shape.query_heads} heads ({str(error).strip().splitlines()[-1].strip()})",
        )
    full = {**state, **(_zero_biases(model, structure, target.state_dict()) if output_bias else {})}
    if _differ(target, full):
        return None, f"the stock class of {structure.model_type} has no configuration for these widths"
    if not all(getattr(model.config, switch, False) for switch in switches):
        notes = [*notes, f"{' and '.join(switches)} switched on for them; biases the base model did not have elsewhere are zero"]
    return Target(target, full, True, notes), ""


def _equivalent(
    model: Any, structure: ModelStructure, output_bias: bool, state: dict[str, Tensor], shape: LayerShape, notes: list[str]
) -> Target | None:
    """A class of another family that has the same tensors and computes the same."""
    family = family_of(structure.model_type)
    if output_bias or family.equivalent is None or any(getattr(model.config, switch, False) for switch in family.equivalent_lacks):
        return None
    values = {**named_widths(model.config, structure, shape, head_dim=True), **dict(family.equivalent_changes)}
    target = build_on_meta(make_config(model, family.equivalent, values, family.equivalent_lacks))
    if _differ(target, state):
        return None
    return Target(target, state, True, [*notes, f"written as {family.equivalent}, which has the same tensors and computes the same"])


def _own_file(model: Any, structure: ModelStructure, state: dict[str, Tensor], shapes: list[LayerShape], notes: list[str]) -> Target:
    """The class of our modelling file; the configuration lists every tensor whose shape is not the dense model's."""
    dense = dense_on_meta(model, structure)
    target_class = getattr(modeling_adapruner, f"{modeling_adapruner.PREFIX}{type(dense).__name__}", None)
    if target_class is None:
        raise ModelError(
            f"model: expected a class of transformers for layers of different widths, got {type(dense).__name__}; "
            "prune with allocation.method uniform, or export with pad"
        )
    config, before = dense.config, {name: tuple(tensor.shape) for name, tensor in dense.state_dict().items()}
    config.pruned_shapes = {name: list(t.shape) for name, t in state.items() if before.get(name) != tuple(t.shape)}
    config.pruned_attributes = _pruned_attributes(model, structure, shapes)
    config.auto_map = auto_map_of(config)
    widths = [named_widths(model.config, structure, shape) for shape in shapes]
    if family_of(structure.model_type).head_counts and len(widths[0]) > 1:  # the names that transformers itself gives to such widths
        config.allow_global_per_layer_attribute_access = True
        config.per_layer_config = dict(enumerate(widths))
    return Target(build_on_meta(config, target_class), state, False, notes)


def _pruned_attributes(model: Any, structure: ModelStructure, shapes: list[LayerShape]) -> dict[str, dict[str, Any]]:
    """Module -> attribute -> value, for every layer that has other widths than the configuration says."""
    path, _ = find_decoder_layers(model)
    kept = {group.name: list(range(group.units)) for group in structure.groups}
    found = {}
    for layer, shape in enumerate(shapes):
        if shape != structure.configured:
            for inside, values in layer_attributes(model.config, structure, layer, kept).items():
                found[f"{path}.{layer}.{inside}"] = values
    return found


def _differ(target: Any, state: Mapping[str, Tensor]) -> bool:
    """Whether some tensor is not of the same shape in both."""
    return {n: tuple(t.shape) for n, t in target.state_dict().items()} != {n: tuple(t.shape) for n, t in state.items()}


def _zero_biases(model: Any, structure: ModelStructure, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Biases for linear layers before the output projections that have none, of the names a stock class wants, all zero."""
    linears = {f"{module}.bias": model.get_submodule(module) for g in structure.groups for module, dim in g.tensors if dim == 0}
    return {n: li.weight.new_zeros(li.weight.shape[0]) for n, li in linears.items() if li.bias is None and n in wanted}


def has_uneven_experts(config: Any) -> bool:
    """Whether experts have widths that transformers' grouped product, which wants multiples of 16 bytes, cannot take."""
    if not (getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)):
        return False
    shapes = [shape for name, shape in (getattr(config, "pruned_shapes", None) or {}).items() if name.endswith("experts.down_proj")]
    width = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 8)
    return any(w % 8 for w in ([shape[-1] for shape in shapes] or [width]))
