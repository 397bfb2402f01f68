"""One learned gate per unit, open or shut under the exact budget, on the input of the unit's output projection.

A gate is a logit. At every step the units of the highest logits that the budget allows stay, the others are shut: what is learned is
which, and never how much. Shut and open gates both get a gradient, straight through (Bengio et al., arXiv 1308.3432): the mask is
z = hard + sigmoid(logit) - stop_gradient(sigmoid(logit)), as in GRASPrune (arXiv 2604.19398).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.models.units import ModelStructure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import UnitCosts
from adapruner.pruning.plan import PruningPlan

#: Logits of a model's units, the lowest and the highest of them, are this far apart at the start.
SPREAD = 4.0


class UnitGates:
    """The gates of a model's units.

    Args:
        structure: of the model.
        budget, costs: how much has to go.
        allocation: whether heads are uniform, and which widths there may be; the ranking itself is the gates' own.
        logits: group name -> ``[units]``, what the gates start from (:func:`first_logits`).
    """

    def __init__(
        self, structure: ModelStructure, budget: Budget, costs: UnitCosts, allocation: Allocation, logits: Mapping[str, Tensor]
    ) -> None:
        self.structure, self.budget, self.costs = structure, budget, costs
        self.allocation = Allocation("gamma", per="unit", heads=allocation.heads, round_to=allocation.round_to)
        self.logits = {name: values.detach().float().clone().requires_grad_() for name, values in logits.items()}

    def kept(self) -> dict[str, list[int]]:
        """Group name -> sorted units whose gates are open now.

        Raises:
            BudgetError: if no choice of units meets the budget.
        """
        sets = {group.name: group.sets for group in self.structure.groups}  # units that go together count as their mean
        scores = {name: values.detach().double().cpu().exp() / sets[name] for name, values in self.logits.items()}
        return allocate(scores, self.structure, self.budget, self.allocation, self.costs)

    @contextmanager
    def applied(self, model: nn.Module, kept: Mapping[str, list[int]]) -> Iterator[None]:
        """The dense model with its gates inside the block; where gradients are on, a backward pass reaches every logit.

        Args:
            kept: what :meth:`kept` returned; the model's weights need no gradients.
        """
        with ExitStack() as hooks:
            for group in self.structure.groups:
                mask = self._mask(group.name, kept[group.name]).repeat_interleave(group.channels_per_unit)
                handle = model.get_submodule(group.output.module).register_forward_pre_hook(_times(mask))
                hooks.callback(handle.remove)
                routers = [m.module.rpartition(".")[0] for m in group.members if m.role == "router"] if group.expert_units else []
                for router in routers:  # what is shut is not chosen
                    hooks.enter_context(model.get_submodule(router).choosing_among(kept[group.name]))  # type: ignore[operator]
            yield

    def _mask(self, name: str, kept: list[int]) -> Tensor:
        """``[units]``: 1 and 0, with the gradient of the gates' probabilities."""
        probabilities = self.logits[name].sigmoid()
        hard = torch.zeros_like(probabilities)
        hard[kept] = 1.0
        return hard + (probabilities - probabilities.detach())


def first_logits(
    plan: PruningPlan, structure: ModelStructure, priorities: Mapping[str, Tensor], device: torch.device, over_model: bool
) -> dict[str, Tensor]:
    """Group name -> ``[units]`` float32: by rank, so that the plan's own threshold is at 0 and all logits lie within :data:`SPREAD`.

    Args:
        priorities: group name -> ``[units]``, what the plan's units were ranked by.
        over_model: whether units of different groups were compared; else each group is ranked by itself.
    """
    removed = {g.name: g.units - len(plan.kept[g.name]) for g in structure.groups}
    if not over_model:
        found = {g.name: (_ranks(priorities[g.name]) - removed[g.name] + 0.5) / g.units for g in structure.groups}
    else:
        names = [g.name for g in structure.groups]
        order = _ranks(torch.cat([priorities[name].double() for name in names]))
        parts = order.split([len(priorities[name]) for name in names])
        found = {name: (part - sum(removed.values()) + 0.5) / len(order) for name, part in zip(names, parts, strict=True)}
    return {name: (SPREAD * values).float().to(device) for name, values in found.items()}


def _ranks(values: Tensor) -> Tensor:
    """``[n]`` float64: the place of each in ascending order, from 0."""
    return torch.argsort(torch.argsort(values, stable=True), stable=True).double()


def _times(mask: Tensor) -> Any:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        return (states * mask.to(states), *arguments[1:])

    return hook
