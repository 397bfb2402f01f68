"""The one record a family may fill in; every field has a default that fits Llama."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

Kind = Literal["attention", "ffn"]

#: Role -> row of every channel: where the query, key, ... of each channel of the output projection live.
IndexMap = Mapping[str, "MappedRows"]


@dataclass(frozen=True)
class MappedRows:
    """Rows of one part of a linear layer, which may be fused with other parts in one module."""

    module: str
    """Dotted name inside the decoder layer: ``attention.query_key_value``."""
    rows: tuple[int, ...]
    """``[channels]``: the row of each channel; several channels share a row under grouped-query attention."""


@dataclass(frozen=True)
class LayerShape:
    """The widths of one decoder layer, dense or pruned."""

    query_heads: int
    key_value_heads: int
    head_dim: int
    ffn: int
    """Channels of the feed-forward network (of one expert, where there are several)."""
    kept_heads: tuple[int, ...]
    """Indices of the query heads that stay, in the dense model's numbering."""
    experts: int = 0
    """Experts of a mixture; 0 where there is none."""


def no_attributes(config: Any, shape: LayerShape) -> dict[str, dict[str, Any]]:
    """For forwards that read every width off the tensors."""
    return {}


def nothing_unprunable(config: Any) -> dict[Kind, str]:
    """Both kinds can be removed."""
    return {}


def already_linear(model: nn.Module) -> None:
    """Every coupled tensor is the weight of a linear layer as it is."""


def same_state(state: dict[str, Any], config: Any) -> dict[str, Any]:
    """The stock class has the tensors of the linear form."""
    return state


@dataclass(frozen=True)
class Family:
    """What sets one ``model_type`` apart from a plain decoder."""

    model_type: str
    outputs: Mapping[str, Kind] = field(default_factory=dict)
    """Dotted name inside a decoder layer of the output projections -> their kind; empty: the common names are looked for."""
    maps: Mapping[Kind, Callable[[Any], IndexMap]] = field(default_factory=dict)
    """Kind -> rows of the coupled tensors, worked out from the configuration, where tracing gets them wrong. In the order
    q, k, v or gate, up; the output projection is added."""
    attributes: Callable[[Any, LayerShape], dict[str, dict[str, Any]]] = no_attributes
    """Module inside the layer -> attributes its forward reads -> values at these widths. An attribute ``config.name``
    gives the module a live view of the configuration with this value; ``alibi_heads`` picks rows of ALiBi's slopes."""
    unprunable: Callable[[Any], dict[Kind, str]] = nothing_unprunable
    """Kinds that cannot be removed exactly from a model with this configuration -> why."""
    linear_form: Callable[[nn.Module], None] = already_linear
    """Puts an unusual model into a form made of linear layers, in place; computes the same. Called again, does nothing."""
    stock_state: Callable[[dict[str, Any], Any], dict[str, Any]] = same_state
    """Tensors of the linear form, pruned -> those of the stock class."""

    # The export.
    ffn_name: str | None = "intermediate_size"
    """The configuration's name of the feed-forward width; None where it has none."""
    experts_name: str | None = None
    """The configuration's name of the number of experts, the one that is saved; None where there are none."""
    head_counts: bool = True
    """Whether the stock class takes any number of heads, given ``head_dim`` (its refusals aside)."""
    layers_name: str = "num_hidden_layers"
    twin: str | None = None
    """A ``model_type`` with the same tensors and maths whose configuration accepts any number of heads."""
    twin_changes: tuple[tuple[str, Any], ...] = ()
    """Configuration values that make the twin compute the same."""
    twin_lacks: tuple[str, ...] = ()
    """Switches the twin does not have: it can stand in only where they are all off."""
    output_bias_switches: tuple[tuple[str, str], ...] = ()
    """Output projection -> the switch in the configuration that gives it a bias. The same switch gives one to the other
    linear layers of its block. A projection that is not named never has a bias that could be switched on."""
