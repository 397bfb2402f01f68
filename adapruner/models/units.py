"""What a model is made of: prunable units and every tensor that goes with them.

A *group* is one decoder layer's attention or feed-forward network. Its *channels* are the input channels of its output
projection (``o_proj``, ``down_proj``). A *unit* is a run of channels that is removed or kept as a whole: under
multi-head attention a head, under grouped-query attention a KV head with all its query heads (or, where asked for, a single
query head), in the FFN one channel, or in a mixture of experts, where asked for, a whole expert.
Every coupled tensor is a *member* of the group and says at which of its rows or columns each channel lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from adapruner.models.families.family import LayerShape
from adapruner.models.kinds import KINDS, Kind

__all__ = ["KINDS", "Kind", "Member", "ModelStructure", "UnitGroup", "count_parameters"]


@dataclass(frozen=True, eq=False)
class Member:
    """One tensor coupled to a group's channels."""

    role: str
    """Short name, the same in every layer: ``q_proj``, ``down_proj``, ... Parts of a fused layer have roles of their own."""
    module: str
    """Dotted name of the linear layer that owns ``weight`` (and ``bias``). Fused parts share one and have rows of their own."""
    dim: Literal[0, 1]
    """0: channels are output rows (the bias goes along); 1: channels are input columns."""
    index: Tensor
    """``[channels]`` int64: the row or column of each channel. Under grouped-query attention several channels share
    one row of ``k_proj`` and ``v_proj``, so values repeat."""

    @cached_property
    def share(self) -> Tensor:
        """``[channels]`` float32: 1 / how many channels share the row; a row's score is credited in these parts."""
        counts = torch.bincount(self.index)
        return 1.0 / counts[self.index].float()

    def positions(self, channels: Tensor) -> Tensor:
        """Sorted, unique rows or columns of the given channels ``[k]``."""
        return torch.unique(self.index[channels])


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """The attention or the FFN of one decoder layer, as removable units."""

    layer: int
    kind: Kind
    units: int
    """Number of units."""
    channels_per_unit: int
    """Input channels of the output projection that belong to one unit: unit u owns ``[u * c, (u + 1) * c)``."""
    members: tuple[Member, ...]
    """Every coupled tensor; the output projection is the last."""
    parameters_per_unit: int
    """Parameters that go when one unit goes, biases included."""
    sets: int = 1
    """Units come in this many runs of equal length, of which a plan must keep equally many each: the query heads of each KV
    head, the channels of each expert. 1: any units may go."""
    head_dim: int = 0
    """Channels of one query head; 0 for the FFN."""
    key_value_heads: int = 0
    """KV heads of the dense layer; 0 for the FFN."""
    staying: tuple[Member, ...] = ()
    """Parts fused with a coupled one whose rows all stay: keys and values where single query heads go."""
    at_least: int = 1
    """Fewest units that have to stay: as many experts as a token chooses."""
    head_numbers: tuple[int, ...] = ()
    """Of each query head, its number in the model that the configuration builds; empty where that is its place here."""
    added_bias: bool = False
    """Whether the output projection has a bias that the class does not build from the configuration."""

    @property
    def channels(self) -> int:
        """Input channels of the output projection."""
        return self.units * self.channels_per_unit

    @property
    def output(self) -> Member:
        """The output projection (``o_proj``, ``down_proj``)."""
        return self.members[-1]

    @cached_property
    def tensors(self) -> tuple[tuple[str, Literal[0, 1]], ...]:
        """(module, dim) of every coupled weight, each once however many fused parts it has; the output projection last."""
        return tuple(dict.fromkeys((m.module, m.dim) for m in self.members))

    def positions(self, module: str, channels: Tensor) -> Tensor:
        """Sorted, unique rows or columns that the given channels ``[k]`` have in one coupled weight, over all fused parts."""
        rows = [m.index[channels] for m in self.members if m.module == module]
        return torch.unique(torch.cat([*rows, *(m.index for m in self.staying if m.module == module)]))

    def size(self, module: str) -> int:
        """Rows or columns that all channels have in one coupled weight, over all fused parts."""
        return 1 + max(int(m.index.max()) for m in (*self.members, *self.staying) if m.module == module)

    def narrowed(self, channels: Tensor, units: int, sets: int = 1) -> UnitGroup:
        """The group of a layer that has only some of the channels, its rows and columns counted anew.

        Args:
            channels: ``[k]`` sorted, whole heads for attention.
            units: that they make.
            sets: that the units come in.
        """

        def counted_anew(members: tuple[Member, ...]) -> tuple[Member, ...]:
            return tuple(replace(m, index=torch.searchsorted(self.positions(m.module, channels), m.index[channels])) for m in members)

        heads: tuple[int, ...] = ()
        if self.head_dim:
            heads = tuple(int(c) // self.head_dim for c in channels[:: self.head_dim])
            heads = tuple(self.head_numbers[h] for h in heads) if self.head_numbers else heads
        return replace(
            self,
            units=units,
            channels_per_unit=len(channels) // units,
            members=counted_anew(self.members),
            staying=counted_anew(self.staying),
            sets=sets,
            key_value_heads=self.key_value_heads if self.query_head_units else units * bool(self.head_dim),
            head_numbers=() if heads == tuple(range(len(heads))) else heads,
        )

    def even_units(self, count: int) -> list[int]:
        """The first units of each set, ``count`` in all, rounded down to equally many in each and at least as many as have to stay."""
        length, each = self.units // self.sets, max(-(-self.at_least // self.sets), count // self.sets)
        return [start * length + unit for start in range(self.sets) for unit in range(each)]

    @property
    def query_head_units(self) -> bool:
        """Whether a unit is a single query head of a KV head that stays."""
        return self.kind == "attention" and self.channels_per_unit == self.head_dim and self.units != self.key_value_heads

    @property
    def expert_units(self) -> bool:
        """Whether a unit is a whole expert: all its channels, and its row of the router."""
        return any(member.role == "router" for member in self.members)

    @property
    def name(self) -> str:
        """``layer.kind``, for messages and tables: ``3.attention``."""
        return f"{self.layer}.{self.kind}"

    def channels_of(self, units: list[int] | Tensor) -> Tensor:
        """Channels ``[k * channels_per_unit]`` of the given units, in order."""
        starts = torch.as_tensor(units, dtype=torch.long)[:, None] * self.channels_per_unit
        return (starts + torch.arange(self.channels_per_unit)).flatten()


@dataclass(frozen=True, eq=False)
class ModelStructure:
    """All groups of a model, ordered by layer, attention before FFN."""

    groups: tuple[UnitGroup, ...]
    model_type: str
    """The ``model_type`` of the Hugging Face configuration."""
    layers: int
    """Number of decoder layers."""
    parameters: int
    """Distinct parameters of the whole model (tied tensors counted once)."""
    block_parameters: int
    """Parameters that could be removed if every unit of every group went: the coupled tensors of all groups."""
    configured: LayerShape
    """The widths that the configuration gives every layer; layers of a model that was pruned before may be narrower."""
    left_whole: tuple[tuple[Kind, str], ...] = ()
    """Kinds that are not pruned in this family, and why."""

    def group(self, layer: int, kind: Kind) -> UnitGroup:
        """The group of one layer; raises ``KeyError`` where the layer has none of this kind."""
        return self._by_key[layer, kind]

    def of_layer(self, layer: int) -> list[UnitGroup]:
        """The groups of one layer, attention before FFN."""
        return [self._by_key[layer, kind] for kind in KINDS if (layer, kind) in self._by_key]

    def after(self, kept: Mapping[str, list[int]]) -> ModelStructure:
        """The structure of the model that keeps these units (group name -> units, equally many of each set) and no others."""
        groups = tuple(g.narrowed(g.channels_of(kept[g.name]), len(kept[g.name]), g.sets) for g in self.groups)
        removed = sum((g.units - len(kept[g.name])) * g.parameters_per_unit for g in self.groups)
        parameters, block = self.parameters - removed, self.block_parameters - removed
        return replace(self, groups=groups, parameters=parameters, block_parameters=block)

    @cached_property
    def _by_key(self) -> dict[tuple[int, str], UnitGroup]:
        return {(g.layer, g.kind): g for g in self.groups}


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters: a tensor shared by two modules (tied embeddings) counts once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
