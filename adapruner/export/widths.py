"""How wide each layer of a pruned model is, where it has added biases, and the configuration that says so."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

from adapruner.anatomy.units import Member, ModelAnatomy, UnitGroup
from adapruner.errors import ModelError, PlanError
from adapruner.export.families import family_of
from adapruner.pruning.plan import PruningPlan

Widths = dict[str, int]
"""``num_attention_heads``, ``num_key_value_heads``, ``intermediate_size`` of one layer."""

_NOT_CARRIED = (
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "auto_map",
    "per_layer_config",
    "_name_or_path",
    "output_bias",
)


def check_widths(model: Any, anatomy: ModelAnatomy, plan: PruningPlan) -> None:
    """Refuses a model that is not at the plan's widths.

    Raises:
        PlanError: if the plan is for other groups, or empties one.
        ModelError: if a coupled tensor has another size than the plan leaves it, or an output projection has a bias that
            neither the plan nor the family gives it, or lacks one.
    """
    plan.check(anatomy)
    for name, kept in plan.kept.items():
        if not kept:
            raise PlanError(f"plan: expected at least one unit to stay in group {name}, got none; prune less, or protect the layer")
    for group in anatomy.groups:
        channels = group.channels_of(plan.kept[group.name])
        for member in group.members:
            expected, got = len(member.positions(channels)), _size(model, member)
            if got != expected:
                raise ModelError(
                    f"model: expected {member.module} to keep {expected} rows or columns, got {got}; prune it by this plan first"
                )
        switch = dict(family_of(anatomy.model_type).output_bias_switches).get(group.output.role, "")
        _check_output_bias(model, group.output, plan.output_bias or bool(getattr(model.config, switch, False)))


def _check_output_bias(model: Any, output: Member, expected: bool) -> None:
    if (getattr(model.get_submodule(output.module), "bias", None) is not None) is not expected:
        words = ("a bias", "none") if expected else ("no bias", "one")
        raise ModelError(f"model: expected {words[0]} in {output.module}, got {words[1]}; prune it by this plan first")


def layer_widths(model: Any, anatomy: ModelAnatomy) -> list[Widths]:
    """The widths of every layer as the tensors have them."""
    head_dim = head_dimension(model, anatomy)
    return [
        {
            "num_attention_heads": _size(model, _member(anatomy.group(layer, "attention"), "q_proj")) // head_dim,
            "num_key_value_heads": _size(model, _member(anatomy.group(layer, "attention"), "k_proj")) // head_dim,
            "intermediate_size": _size(model, anatomy.group(layer, "ffn").output),
        }
        for layer in range(anatomy.layers)
    ]


def dense_widths(model: Any, anatomy: ModelAnatomy) -> Widths:
    """The widths before pruning. Surgery may have changed the model's configuration, so they are read off the anatomy."""
    head_dim, attention = head_dimension(model, anatomy), anatomy.group(0, "attention")
    return {
        "num_attention_heads": (int(_member(attention, "q_proj").index.max()) + 1) // head_dim,
        "num_key_value_heads": (int(_member(attention, "k_proj").index.max()) + 1) // head_dim,
        "intermediate_size": anatomy.group(0, "ffn").channels,
    }


def head_dimension(model: Any, anatomy: ModelAnatomy) -> int:
    """Channels per head, from the attention module: some configurations derive it from the (changed) number of heads."""
    attention = _member(anatomy.group(0, "attention"), "q_proj").module.rpartition(".")[0]
    return int(model.get_submodule(attention).head_dim)


def choose_config(model: Any, anatomy: ModelAnatomy, output_bias: bool = False) -> tuple[Any, bool, list[str]]:
    """The configuration to write, whether a stock class reads it, and what a reader should know.

    In order: the family's own class, its twin, our modelling file, in which each layer has widths of its own.

    Args:
        output_bias: every output projection has a bias (``PruningPlan.output_bias``). A stock class that is told so may
            want biases of the block's other linear layers too: see :func:`zero_biases`.
    """
    widths = layer_widths(model, anatomy)
    notes = ["output projections have biases that make up for removed units on average (FLAP, arXiv 2312.11983)"] if output_bias else []
    uniform = all(width == widths[0] for width in widths)
    switches = _bias_switches(anatomy) if output_bias else {}
    if uniform and switches is not None:
        try:
            config = _config(model, anatomy, anatomy.model_type, widths[0], switches)
            if output_bias and not all(getattr(model.config, switch, False) for switch in switches):
                notes.append(f"{' and '.join(switches)} switched on for them; biases the base model did not have elsewhere are zero")
            return config, True, notes
        except _refusals() as error:
            notes.append(f"the {anatomy.model_type} configuration refuses {widths[0]['num_attention_heads']} heads ({_last_line(error)})")
        twin = None if output_bias else _twin_config(model, anatomy, widths[0])
        if twin is not None:
            notes.append(f"written as {twin.model_type}, which has the same tensors and computes the same")
            return twin, True, notes
    reason = "layers have widths of their own"
    if uniform and switches is None:
        reason = f"the stock class of {anatomy.model_type} has no biases there"
    notes.append(f"{reason}: loading needs trust_remote_code=True, or adapruner.export.loading.load")
    config = _config(model, anatomy, anatomy.model_type, dense_widths(model, anatomy))
    # The stock constructor reads the global widths before the layers get theirs.
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = dict(enumerate(widths))
    if output_bias:
        config.output_bias = True
    return config, False, notes


def zero_biases(model: Any, anatomy: ModelAnatomy, wanted: Container[str]) -> dict[str, Tensor]:
    """Biases for linear layers before the output projections that have none, of the names a stock class wants, all zero."""
    linears = {f"{m.module}.bias": model.get_submodule(m.module) for g in anatomy.groups for m in g.members if m.dim == 0}
    return {n: li.weight.new_zeros(li.weight.shape[0]) for n, li in linears.items() if li.bias is None and n in wanted}


def _bias_switches(anatomy: ModelAnatomy) -> dict[str, bool] | None:
    """The values that give every output projection a bias in the family's own class; None if it has no switch for one."""
    known = dict(family_of(anatomy.model_type).output_bias_switches)
    roles = dict.fromkeys(group.output.role for group in anatomy.groups)
    return {known[role]: True for role in roles} if roles.keys() <= known.keys() else None


def _twin_config(model: Any, anatomy: ModelAnatomy, width: Widths) -> Any | None:
    family = family_of(anatomy.model_type)
    if family.twin is None or any(getattr(model.config, switch, False) for switch in family.twin_lacks):
        return None
    return _config(model, anatomy, family.twin, width, dict(family.twin_changes), family.twin_lacks)


def _config(
    model: Any,
    anatomy: ModelAnatomy,
    model_type: str,
    width: Widths,
    changes: Mapping[str, Any] | None = None,
    dropped: tuple[str, ...] = (),
) -> Any:
    from transformers import AutoConfig

    values = {key: value for key, value in model.config.to_dict().items() if key not in (*_NOT_CARRIED, *dropped)}
    values |= {**width, "head_dim": head_dimension(model, anatomy), **(changes or {})}
    # Training may untie what the configuration calls tied; loading would then drop the output layer.
    values["tie_word_embeddings"] = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return AutoConfig.for_model(model_type, **values)


def _refusals() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError

    return (ValueError, StrictDataclassError)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def _member(group: UnitGroup, role: str) -> Member:
    return next(member for member in group.members if member.role == role)


def _size(model: Any, member: Member) -> int:
    return int(model.get_submodule(member.module).weight.shape[member.dim])
