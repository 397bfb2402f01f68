"""How wide each layer of a pruned model is, and the configuration that says so."""

from __future__ import annotations

from typing import Any

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
)


def check_widths(model: Any, anatomy: ModelAnatomy, plan: PruningPlan) -> None:
    """Refuses a model that is not at the plan's widths.

    Raises:
        PlanError: if the plan is for other groups, or empties one.
        ModelError: if a coupled tensor has another size than the plan leaves it.
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


def choose_config(model: Any, anatomy: ModelAnatomy) -> tuple[Any, bool, list[str]]:
    """The configuration to write, whether a stock class reads it, and what a reader should know.

    In order: the family's own class, its twin, layers with widths of their own.
    """
    widths = layer_widths(model, anatomy)
    notes: list[str] = []
    if all(width == widths[0] for width in widths):
        try:
            return _config(model, anatomy, anatomy.model_type, widths[0]), True, notes
        except _refusals() as error:
            notes.append(f"the {anatomy.model_type} configuration refuses {widths[0]['num_attention_heads']} heads ({_last_line(error)})")
        twin = _twin_config(model, anatomy, widths[0])
        if twin is not None:
            notes.append(f"written as {twin.model_type}, which has the same tensors and computes the same")
            return twin, True, notes
    notes.append("layers have widths of their own: loading needs trust_remote_code=True, or adapruner.export.loading.load")
    config = _config(model, anatomy, anatomy.model_type, dense_widths(model, anatomy))
    # The stock constructor reads the global widths before the layers get theirs.
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = dict(enumerate(widths))
    return config, False, notes


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
    changes: dict[str, Any] | None = None,
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
