"""Gram matrices of the output projections' inputs in the dense model, one for each part of the calibration pool.

A part is a source or a cluster. A refit under any weighting of the parts is then a sum of cached matrices and one solve
(:mod:`adapruner.recovery.local`): it needs no pass over the data and fits into a trial of the search. It costs memory,
:func:`gram_gib`: 77 MB for a model of 8 layers, width 192, and eight parts, 141 GB for LLaMA-7B, so it pays for small models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import DataError, ModelError
from adapruner.importance.moments import InputMoments
from adapruner.models.forward import Progress, Windows, batches, evaluation_mode, hooked
from adapruner.models.sequences import in_sequences
from adapruner.models.units import ModelStructure, UnitGroup


@dataclass
class GramMatrices:
    """Sums over the tokens of each part, float32; every table is linear in the weights of the samples."""

    samples: Tensor
    """``[parts]``: number of samples."""
    tokens: Tensor
    """``[parts]``: number of tokens."""
    grams: dict[str, Tensor] = field(default_factory=dict)
    """Group name -> ``[parts, channels, channels]``: sum of x x^T."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Group name -> ``[parts, channels]``: sum of x."""

    def moments(self, group: str, part_weights: Tensor | None = None) -> InputMoments:
        """Sums over all tokens with the sample weights w_p / n_p: each part's weight shared equally by its samples.

        Args:
            part_weights: ``[parts]``, any positive scale; all samples alike when empty.

        Raises:
            DataError: if there is not one weight for each part.
        """
        weights = self.samples / self.samples.sum() if part_weights is None else part_weights
        if weights.shape != self.samples.shape:
            count = len(self.samples)
            raise DataError(f"part_weights: expected {count} of them, got shape {tuple(weights.shape)}; give one for each part")
        shares = weights.to(self.samples) / self.samples.clamp_min(1.0)

        def weigh(table: Tensor) -> Tensor:
            return torch.mv(table.flatten(1).T, shares.to(table)).view(table.shape[1:])

        return InputMoments(weigh(self.grams[group]), weigh(self.sums[group]), shares @ self.tokens)

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat names for a safetensors file, on the CPU."""
        tables = {"grams": self.grams, "sums": self.sums}
        flat = {f"{table}/{name}": v.cpu().contiguous() for table, values in tables.items() for name, v in values.items()}
        return {"tokens": self.tokens.cpu(), "samples": self.samples.cpu(), **flat}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> GramMatrices:
        """The inverse of :meth:`to_tensors`."""
        result = cls(tensors["samples"], tensors["tokens"])
        for name, value in tensors.items():
            if "/" in name:
                table, group = name.split("/", 1)
                getattr(result, table)[group] = value
        return result


def gram_gib(structure: ModelStructure, parts: int) -> float:
    """GiB that the Gram matrices of a pool with this many parts take: tells a caller where they pay."""
    return 4 * parts * sum(g.channels * (g.channels + 1) for g in structure.groups) / 2**30


def collect_grams(
    model: nn.Module,
    structure: ModelStructure,
    windows: Windows,
    part_index: Tensor | None = None,
    parts: int = 1,
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> GramMatrices:
    """One forward pass of the dense model over the pool; padding does not count. The tables stay on the model's devices.

    Args:
        part_index: ``[samples]`` int64 below ``parts``; one part of all samples when empty.
        progress: called with the number of samples done.

    Raises:
        ModelError: if a Gram matrix is not finite; the message names the layer.
    """
    index = torch.zeros(len(windows.input_ids), dtype=torch.long) if part_index is None else part_index.cpu()
    tokens = torch.zeros(parts).index_add_(0, index, windows.attention_mask.float().sum(1).cpu())
    collector = _Collector(GramMatrices(torch.bincount(index, minlength=parts).float(), tokens))
    order = torch.argsort(index, stable=True)  # a batch then holds one part, or two
    inner: Any = getattr(model, "base_model", model)  # without the head over the vocabulary
    device = next(model.parameters()).device
    with evaluation_mode(model), hooked(collector.hook(model, structure)):
        for places in batches(len(order), batch_size, progress):
            rows = order[places]
            collector.parts, collector.mask = index[rows], windows.attention_mask[rows]
            inner(input_ids=windows.input_ids[rows].to(device), attention_mask=collector.mask.to(device), use_cache=False)
    for name, values in collector.result.grams.items():
        if not bool(torch.isfinite(values).all()):
            raise ModelError(f"calibration: expected finite inputs, got inf or nan in group {name}; use bfloat16 or float32")
    return collector.result


class _Collector:
    """Adds up the moments of each group and part while batches run through the model."""

    def __init__(self, result: GramMatrices) -> None:
        self.result = result
        self.parts, self.mask = torch.empty(0), torch.empty(0)

    def hook(self, model: nn.Module, structure: ModelStructure) -> Iterator[Any]:
        for group in structure.groups:
            yield model.get_submodule(group.output.module).register_forward_pre_hook(self._on_input(group))

    def _on_input(self, group: UnitGroup) -> Any:
        tables, count, channels = self.result, len(self.result.samples), group.channels

        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            states = in_sequences(arguments[0], len(self.parts))
            if group.name not in tables.grams:
                tables.grams[group.name] = torch.zeros(count, channels, channels, device=states.device)
                tables.sums[group.name] = torch.zeros(count, channels, device=states.device)
            for part in self.parts.unique().tolist():
                gram, total = tables.grams[group.name][part], tables.sums[group.name][part]  # added to in place
                rows = self.parts == part
                InputMoments(gram, total, torch.zeros((), device=states.device)).add(states[rows.to(states.device)], self.mask[rows])

        return hook
