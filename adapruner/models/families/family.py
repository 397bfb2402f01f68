"""The one record a family may fill in, with defaults that fit Llama, and the registry of those that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adapruner.models.kinds import Kind
from adapruner.registry import Registry

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


@dataclass(frozen=True)
class Family:
    """What sets one ``model_type`` apart from a plain decoder."""

    model_type: str
    outputs: Mapping[str, Kind] = field(default_factory=dict)
    """Dotted name inside a decoder layer of the output projections -> their kind; empty: the common names are looked for."""
    maps: Mapping[Kind, Callable[[Any], IndexMap]] = field(default_factory=dict)
    """Kind -> rows of the coupled tensors, worked out from the configuration, where tracing gets them wrong. In the order
    q, k, v or gate, up; the output projection is added."""
    attributes: Callable[[Any, LayerShape], dict[str, dict[str, Any]]] = lambda config, shape: {}
    """Module inside the layer -> attributes its forward reads -> values at these widths. An attribute ``config.name``
    gives the module a live view of the configuration with this value; ``alibi_heads`` picks rows of ALiBi's slopes."""
    unprunable: Callable[[Any], dict[Kind, str]] = lambda config: {}
    """Kinds that cannot be removed exactly from a model with this configuration -> why."""
    linear_form: Callable[[nn.Module], None] = lambda model: None
    """Puts an unusual model into a form made of linear layers, in place; computes the same. Called again, does nothing."""
    stock_state: Callable[[dict[str, Any], Any], dict[str, Any]] = lambda state, config: state
    """Tensors of the linear form, pruned -> those of the stock class."""

    # The export.
    ffn_name: str | None = "intermediate_size"
    """The configuration's name of the feed-forward width; None where it has none."""
    experts_name: str | None = None
    """The configuration's name of the number of experts, the one that is saved; None where there are none."""
    head_counts: bool = True
    """Whether the stock class takes any number of heads, given ``head_dim`` (its refusals aside)."""
    equivalent: str | None = None
    """A ``model_type`` with the same tensors and maths whose configuration accepts any number of heads."""
    equivalent_changes: tuple[tuple[str, Any], ...] = ()
    """Configuration values that make the equivalent compute the same."""
    equivalent_lacks: tuple[str, ...] = ()
    """Switches the equivalent does not have: it can stand in only where they are all off."""
    output_bias_switches: tuple[tuple[str, str], ...] = ()
    """Output projection -> the switch in the configuration that gives it a bias. The same switch gives one to the other
    linear layers of its block. A projection that is not named never has a bias that could be switched on."""


FAMILIES: Registry[Family] = Registry("family", "adapruner.models.families", "adapruner.families")

_TRIED = """
llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 opt gpt_neox bloom gpt2 falcon olmo olmo2 olmo3 smollm3 granite cohere
cohere2 starcoder2 stablelm glm4 helium exaone4 nemotron mixtral qwen2_moe olmoe qwen3_moe
"""
TRIED = frozenset(_TRIED.split())
"""Model types that the tests take through the whole conformance suite; others are tried on the spot before they are pruned."""


def register_family(family: Family) -> Family:
    """Makes known what a ``model_type`` needs; what was known of it before is replaced.

    >>> family = register_family(Family("gptj", ffn_name="n_inner", head_counts=False))
    >>> family_of("gptj") is family
    True
    >>> FAMILIES.remove("gptj")
    """
    if family.model_type in FAMILIES:
        FAMILIES.remove(family.model_type)
    return FAMILIES.add(family.model_type, family)


def family_of(model_type: str) -> Family:
    """What is known of a family; the plain record for one that needs nothing.

    >>> family_of("opt").ffn_name, family_of("some-new-decoder").ffn_name
    ('ffn_dim', 'intermediate_size')
    """
    return FAMILIES.find(model_type) if model_type in FAMILIES else Family(model_type)


def known_families() -> tuple[str, ...]:
    """Sorted model types that something is written for."""
    return tuple(sorted(FAMILIES))
