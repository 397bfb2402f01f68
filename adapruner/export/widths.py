"""How wide each layer of a pruned model is, and whether it is at the widths, and has the biases, that its plan gives it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NoReturn

from torch import Tensor

from adapruner.errors import ModelError, PlanError
from adapruner.models.families import LayerShape, family_of
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import plan_shape

Widths = dict[str, int]
"""The configuration's name of a width -> its value, for one layer."""


def check_widths(model: Any, structure: ModelStructure, plan: PruningPlan, dense: Any) -> None:
    """Refuses a model that is not at the plan's widths, tensor by tensor.

    Args:
        model: in the linear form of its family.
        dense: the same class at the dense widths, in linear form; the meta device does.

    Raises:
        PlanError: if the plan is for other groups, or empties one.
        ModelError: if a coupled tensor has another size than the plan leaves it, if an output projection has a bias that
            neither the plan nor the family gives it, or lacks one, or if any other tensor is not as in the dense model.
    """
    plan.check(structure)
    for name, kept in plan.kept.items():
        if not kept:
            raise PlanError(f"plan: expected at least one unit to stay in group {name}, got none; prune less, or protect the layer")
    expected = {name: list(tensor.shape) for name, tensor in dense.state_dict().items()}
    for group in structure.groups:
        _expect_group(model, dense, group, plan, expected)
    for name, tensor in model.state_dict().items():
        wanted = expected.pop(name, None)
        if wanted != list(tensor.shape):
            _refuse(dense, f"{name} of shape {list(tensor.shape)} for {wanted or 'none'}")
    if expected:
        _refuse(dense, f"no {next(iter(expected))}")


def _refuse(dense: Any, reason: str) -> NoReturn:
    raise ModelError(f"model: expected the tensors of {type(dense).__name__}, got others ({reason}); merge adapters first")


def _expect_group(model: Any, dense: Any, group: UnitGroup, plan: PruningPlan, expected: dict[str, list[int]]) -> None:
    """Puts the pruned sizes of one group in the place of the dense ones."""
    channels = group.channels_of(plan.kept[group.name])
    for module, dim in group.tensors:
        width, got = len(group.positions(module, channels)), int(model.get_submodule(module).weight.shape[dim])
        if got != width:
            raise ModelError(f"model: expected {module} to keep {width} rows or columns, got {got}; prune it by this plan first")
        expected[f"{module}.weight"][dim] = width
        if dim == 0 and f"{module}.bias" in expected:
            expected[f"{module}.bias"] = [width]
    output = group.output.module
    wanted = plan.output_bias or getattr(dense.get_submodule(output), "bias", None) is not None
    if (getattr(model.get_submodule(output), "bias", None) is not None) is not wanted:
        words = ("a bias", "none") if wanted else ("no bias", "one")
        raise ModelError(f"model: expected {words[0]} in {output}, got {words[1]}; prune it by this plan first")
    if wanted:
        expected[f"{output}.bias"] = [expected[f"{output}.weight"][0]]


def dense_shape(structure: ModelStructure) -> LayerShape:
    """The shape of a layer before pruning, read off the structure: surgery may have changed the model's configuration."""
    from adapruner.models.shapes import layer_shape

    groups = {g.kind: g for g in structure.of_layer(structure.groups[0].layer)}
    return layer_shape(groups, {kind: list(range(g.units)) for kind, g in groups.items()})


def layer_widths(config: Any, structure: ModelStructure, plan: PruningPlan) -> list[Widths]:
    """The widths of every layer in the configuration's own names."""
    return [named_widths(config, structure, plan_shape(structure, plan, layer)) for layer in range(structure.layers)]


def named_widths(config: Any, structure: ModelStructure, shape: LayerShape) -> Widths:
    """A shape in the configuration's own names, as far as it has them."""
    family = family_of(structure.model_type)
    values = {"num_attention_heads": shape.query_heads, "num_key_value_heads": shape.key_value_heads}
    values |= {name: value for name, value in ((family.ffn_name, shape.ffn), (family.experts_name, shape.experts)) if name}
    return {key: value for key, value in values.items() if value and hasattr(config, key)}


def zero_biases(model: Any, structure: ModelStructure, wanted: Container[str]) -> dict[str, Tensor]:
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
