"""Costs of a dense and a pruned model where the device may not hold both at once, or cannot run one of them.

What cannot be measured is ``None``; a run does not end for it. Parameters, multiply-accumulates and weight memory are always found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from adapruner.evaluation.cost import random_dense_model
from adapruner.evaluation.cost_table import COST_ROWS, measure_costs, measure_sizes_alone
from adapruner.evaluation.speed import SpeedPoint, measure_speed
from adapruner.models.smaller_batches import within_memory
from adapruner.models.units import ModelStructure

ONE_BY_ONE = "one model after the other, as the device's memory does not hold both"

Found = TypeVar("Found")


class PairOfModels:
    """The pruned model and a dense one with random weights, side by side on the pruned model's device as far as they fit.

    Args:
        dense_config: the dense model's configuration.
        structure: of the model before pruning, where that may have been pruned before.
        pruned: on one device; it is back there after every measurement, parameters and tied tensors the same objects.
    """

    def __init__(self, dense_config: Any, pruned: nn.Module, structure: ModelStructure | None = None) -> None:
        parameter = next(pruned.parameters())
        self.device = parameter.device
        dense: nn.Module | None = within_memory(lambda: random_dense_model(dense_config, parameter.dtype, self.device, structure))
        self.together = dense is not None
        """Whether both have been on the device so far."""
        alone = random_dense_model(dense_config, parameter.dtype, "cpu", structure) if dense is None else dense
        self.models = {"dense": alone, "pruned": pruned}

    def costs(self, seq_len: int, repeats: int) -> dict[str, dict[str, Any]]:
        """By model: the rows of :data:`adapruner.evaluation.cost_table.COST_ROWS`."""
        found = self._measure(lambda models: measure_costs(models, seq_len, repeats=repeats))
        return {name: self._size(name, seq_len) if cost is None else cost for name, cost in found.items()}

    def speeds(self, batches: Sequence[int], seq_lens: Sequence[int], repeats: int) -> list[SpeedPoint] | None:
        """:func:`adapruner.evaluation.speed.measure_speed` of both; ``None`` where memory does not suffice for the least of it."""
        found = self._measure(lambda models: dict.fromkeys(models, measure_speed(models, batches, seq_lens, repeats)))
        dense, pruned = found["dense"], found["pruned"]
        if dense is None or pruned is None:
            return None
        pairs = zip(dense, pruned, strict=True)
        return [SpeedPoint(a.batch, a.seq_len, {**a.speeds, **b.speeds}, {**a.macs, **b.macs}) for a, b in pairs]

    def _measure(self, measure: Callable[[dict[str, nn.Module]], dict[str, Found]]) -> dict[str, Found | None]:
        """What ``measure`` finds of both at once, else of one at a time; ``None`` of a model that does not fit even so."""
        both = within_memory(lambda: measure(self.models)) if self.together else None
        if both is not None:
            return {**both}
        self.together = False
        return {name: self._alone(name, lambda model, name=name: measure({name: model})[name]) for name in self.models}  # type: ignore[misc]

    def _size(self, name: str, seq_len: int) -> dict[str, Any]:
        """The sizes, which need no timing; MACs are counted on the CPU where the device cannot run it."""
        found = self._alone(name, lambda model: measure_sizes_alone(model, seq_len))
        try:
            known = measure_sizes_alone(self.models[name].to("cpu"), seq_len) if found is None else found
        finally:
            self._put_back()
        return {row: known.get(row) for row in COST_ROWS}

    def _alone(self, name: str, measure: Callable[[nn.Module], Found]) -> Found | None:
        """With the other model in the CPU's memory; the pruned one is on its device again afterwards."""
        for other, model in self.models.items():
            if other != name:
                model.to("cpu")
        torch.cuda.empty_cache()
        try:
            found: Found | None = within_memory(lambda: measure(self.models[name].to(self.device)))
        finally:
            self._put_back()
        return found

    def _put_back(self) -> None:
        self.models["dense"].to("cpu")
        torch.cuda.empty_cache()
        self.models["pruned"].to(self.device)
