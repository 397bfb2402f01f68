"""Where a decoder layer ends its attention and its feed-forward network: the roots of the dependency groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from adapruner.errors import ModelError
from adapruner.models.families import Family
from adapruner.models.units import Kind

#: Last name of an output projection -> its kind; None: as the module around it says.
COMMON_NAMES: dict[str, Kind | None] = {
    "o_proj": "attention",
    "out_proj": "attention",
    "down_proj": "ffn",
    "fc2": "ffn",
    "fc_out": "ffn",
    "dense_4h_to_h": "ffn",
    "dense": None,
    "c_proj": None,
}
_ATTENTION_WORDS = ("attn", "attention")


def find_outputs(layer: nn.Module, family: Family) -> dict[Kind, tuple[str, Any]]:
    """Kind -> (name inside the layer, output projection), attention first.

    Raises:
        ModelError: if there is none, or more than one of a kind.
    """
    found: list[tuple[Kind, str, nn.Module]] = []
    for name, module in layer.named_modules():
        kind = family.outputs.get(name) if family.outputs else _kind_of(name)
        if kind is not None and isinstance(module, nn.Linear):
            found.append((kind, name, module))
    kinds = [kind for kind, _, _ in found]
    if not kinds or len(set(kinds)) != len(kinds):
        names = family.outputs or COMMON_NAMES
        raise ModelError(
            "model: expected in every decoder layer one output projection of attention and one of the FFN, "
            f"named among {', '.join(names)}, "
            f"got {len(kinds)} in {type(layer).__name__}; write a file for its family (docs/add-a-family.md)"
        )
    return {kind: (name, module) for wanted in ("attention", "ffn") for kind, name, module in found if kind == wanted}


def _kind_of(name: str) -> Kind | None:
    around, _, last = name.rpartition(".")
    if last not in COMMON_NAMES:
        return None
    return COMMON_NAMES[last] or ("attention" if around.rsplit(".", 1)[-1].endswith(_ATTENTION_WORDS) else "ffn")


def unprunable_kinds(one_layer: Any, family: Family) -> dict[Kind, str]:
    """Kinds of which nothing can be removed exactly -> why.

    Besides what the family says: a norm of queries or keys that has more weights than a head has channels runs over several
    heads, so that what is left would change with what is removed.
    """
    whole = dict(family.unprunable(one_layer.config))
    head_dim = getattr(one_layer.config, "head_dim", None) or one_layer.config.hidden_size // one_layer.config.num_attention_heads
    for name, parameter in one_layer.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")) and parameter.numel() != head_dim:
            whole.setdefault("attention", f"{name} has {parameter.numel()} weights for heads of {head_dim} channels")
    return whole
