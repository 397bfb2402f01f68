"""Units that have to go in equal numbers from each set: the query heads of every KV head, the channels of every expert.

The weakest unit of each set together are the first *slice*, the second weakest the next, and so on. Budgets and rankings see
slices as units, with their scores added up; which units a kept slice stands for is looked up at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapruner.models.units import ModelStructure
from adapruner.pruning.costs import UnitCosts


@dataclass(frozen=True)
class Slices:
    """A model whose sets are told apart no more."""

    structure: ModelStructure
    scores: dict[str, Tensor]
    """Group name -> ``[slices]``."""
    costs: UnitCosts
    order: dict[str, Tensor]
    """Group name -> ``[sets, slices]``: the units of each slice, for groups that have sets."""

    def units_of(self, kept: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """Kept slices -> sorted kept units."""
        return {n: sorted(self.order[n][:, s].flatten().tolist()) if n in self.order else s for n, s in kept.items()}


def in_slices(structure: ModelStructure) -> ModelStructure:
    """The structure with one unit for each slice; the very same where no group has sets."""
    if all(g.sets == 1 for g in structure.groups):
        return structure
    groups = tuple(
        replace(
            g,
            units=g.units // g.sets,
            channels_per_unit=g.channels_per_unit * g.sets,
            parameters_per_unit=g.parameters_per_unit * g.sets,
            sets=1,
        )
        for g in structure.groups
    )
    return replace(structure, groups=groups)


def slice_units(structure: ModelStructure, scores: Mapping[str, Tensor], costs: UnitCosts) -> Slices:
    """Sorts each set's units by score, lowest first, and adds up what stands in one place.

    Args:
        scores: group name -> ``[units]``.
        costs: per unit.
    """
    sums, order, per_unit = dict(scores), {}, dict(costs.per_unit)
    for group in structure.groups:
        if group.sets > 1:
            table = scores[group.name].view(group.sets, -1)
            ranked = torch.argsort(table, dim=1, stable=True)
            sums[group.name] = table.gather(1, ranked).sum(0)
            order[group.name] = ranked + torch.arange(group.sets)[:, None] * table.shape[1]
            per_unit[group.name] *= group.sets
    return Slices(in_slices(structure), sums, replace(costs, per_unit=per_unit), order)
