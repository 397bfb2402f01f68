"""Scores that need the gradient summed over all samples: |w * sum_n g_n| is not a sum over samples, so it cannot be cached.

LLM-Pruner's ``param_first`` and ``param_mix`` (arXiv 2305.11627, section 3.2) are collected here exactly, for all samples
alike. A layer's gradient lives only until it is reduced to row sums. Where all samples fit in one batch that is at once, inside
the hook; else the gradient accumulates in float32 for as many layers at a time as :mod:`adapruner.importance.layer_runs` allows, at the
price of one pass over the pool for each such run of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.models.sequences import in_sequences
from adapruner.models.units import ModelStructure

#: Names under which row sums are kept in ``UnitStatistics.weights``.
SUMMED_STATISTICS: tuple[str, ...] = ("summed_first", "summed_mix")


class SummedGradients:
    """Accumulates G = sum_n g_n / N, and A = sum_n g_n^2 / N where asked for, for the coupled tensors of some layers.

    ``single_batch``: the backward pass that follows is the only one, so every gradient is reduced on the spot.
    """

    def __init__(self, structure: ModelStructure, layers: range, samples: int, needs: frozenset[str], single_batch: bool) -> None:
        self.tensors = [t for g in structure.groups if g.layer in layers for t in g.tensors]
        self.samples, self.needs, self.single_batch = samples, needs, single_batch
        self.rows: dict[tuple[str, str], Tensor] = {}
        """(statistic, module name) -> ``[rows]`` float32 on the CPU, once reduced."""
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def hook(self, model: nn.Module, token_mask: Callable[[], Tensor]) -> Iterator[Any]:
        """Registers the hooks; the caller removes the handles. ``token_mask`` gives the running batch's ``[batch, seq_len]``."""
        for module, dim in self.tensors:
            yield model.get_submodule(module).register_forward_hook(self._on_forward(module, dim, token_mask))

    def reduce(self, model: nn.Module) -> None:
        """Turns what was accumulated into row sums and frees it."""
        for module, dim in self.tensors:
            if module in self._sums:
                weight: Any = model.get_submodule(module).weight
                self._reduce(module, dim, weight)

    def _reduce(self, module: str, dim: int, weight: Tensor) -> None:
        first = self._sums.pop(module).mul_(weight.detach().float()).div_(self.samples)
        if "summed_first" in self.needs:
            self.rows["summed_first", module] = first.abs().sum(1 - dim).cpu()
        if "summed_mix" in self.needs:
            second = self._squares.pop(module).mul_(weight.detach().float().square()).div_(self.samples)
            self.rows["summed_mix", module] = (first - 0.5 * second).abs().sum(1 - dim).cpu()

    def _on_forward(self, module: str, dim: int, token_mask: Callable[[], Tensor]) -> Callable[..., None]:
        def hook(linear: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            batch = len(token_mask())
            inputs = in_sequences(arguments[0].detach(), batch)

            def on_gradient(gradient: Tensor) -> None:
                self._add(module, linear.weight.shape, in_sequences(gradient, batch).float(), inputs.float())
                if self.single_batch:
                    self._reduce(module, dim, linear.weight)

            output.register_hook(on_gradient)

        return hook

    def _add(self, module: str, shape: torch.Size, gradient: Tensor, inputs: Tensor) -> None:
        total = self._sums.setdefault(module, torch.zeros(shape, device=gradient.device))
        if "summed_mix" not in self.needs:
            total.addmm_(gradient.flatten(0, 1).T, inputs.flatten(0, 1))
            return
        squares = self._squares.setdefault(module, torch.zeros(shape, device=gradient.device))
        for g, x in zip(gradient, inputs, strict=True):
            one = g.T @ x
            total += one
            squares += one.square()
