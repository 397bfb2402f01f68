"""Gram matrices of the output projections' inputs in the dense model, one for each part of the calibration pool.

A part is a source or a cluster. A refit under any weighting of the parts is then a sum of cached matrices and one solve
(:mod:`adapruner.recovery.local`): it needs no pass over the data and fits into a trial of the search. The price is memory,
:func:`gram_gib`: 77 MB for a model of 8 layers, width 192, and eight parts, 141 GB for LLaMA-7B, so it pays for small models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import DataError, ModelError
from adapruner.importance.moments import InputMoments
from adapruner.models.forward import Progress, Windows, batches, frozen, hooked
from adapruner.models.sequences import in_sequences
from adapruner.models.units import ModelStructure, UnitGroup


@dataclass
class GramMatrices:
    """Sums over the tokens of each part, float32; every table is linear in the weights of the samples."""

    grams: dict[str, Tensor]
    """Group name -> ``[parts, channels, channels]``: sum of x x^T."""
    sums: dict[str, Tensor]
    """Group name -> ``[parts, channels]``: sum of x."""
    tokens: Tensor
    """``[parts]``: sum of the tokens' weights, their number where every sample weighs 1."""
    samples: Tensor
    """``[parts]``: sum of the samples' weights, their number where every sample weighs 1."""

    @property
    def parts(self) -> int:
        """Number of parts of the pool."""
        return len(self.samples)

    def weighted(self, group: str, part_weights: Tensor | None = None) -> Tensor:
        """``[channels, channels]``: sum_p (w_p / n_p) C_p, each part's weight shared equally by its samples.

        The same as the sum of w_n x x^T over all tokens with the sample weights w_n = w_p / n_p.

        Args:
            part_weights: ``[parts]``, any positive scale; all samples alike when empty.

        Raises:
            DataError: if there is not one weight for each part.
        """
        return self._weigh(self.grams[group], part_weights)

    def weighted_sum(self, group: str, part_weights: Tensor | None = None) -> Tensor:
        """``[channels]``: the inputs summed over the tokens, weighted like :meth:`weighted`."""
        return self._weigh(self.sums[group], part_weights)

    def moments(self, group: str, part_weights: Tensor | None = None) -> InputMoments:
        """Both, and the number of tokens, under the same weights."""
        tokens = self._weigh(self.tokens, part_weights)
        return InputMoments(self.weighted(group, part_weights), self.weighted_sum(group, part_weights), tokens)

    def _weigh(self, table: Tensor, part_weights: Tensor | None) -> Tensor:
        weights = self.samples / self.samples.sum() if part_weights is None else part_weights
        if weights.shape != self.samples.shape:
            raise DataError(f"part_weights: expected {self.parts} of them, got shape {tuple(weights.shape)}; give one for each part")
        shares = weights.to(self.samples) / torch.where(self.samples > 0, self.samples, 1.0)
        return torch.mv(table.flatten(1).T, shares.to(table)).view(table.shape[1:]) if table.ndim > 1 else shares.to(table) @ table

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat names for a safetensors file, on the CPU."""
        tables = {"grams": self.grams, "sums": self.sums}
        flat = {f"{table}/{name}": v.cpu().contiguous() for table, values in tables.items() for name, v in values.items()}
        return {"tokens": self.tokens.cpu(), "samples": self.samples.cpu(), **flat}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> GramMatrices:
        """The inverse of :meth:`to_tensors`."""
        result = cls({}, {}, tensors["tokens"], tensors["samples"])
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
    sample_weights: Tensor | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> GramMatrices:
    """One forward pass of the dense model over the pool; padding does not count. The tables stay on the model's devices.

    Args:
        part_index: ``[samples]`` int64 below ``parts``; one part of all samples when empty.
        sample_weights: ``[samples]``, how much each sample counts in its part; 1 when empty.
        progress: called with the number of samples done.

    Raises:
        DataError: if there is no sample, or not one part below ``parts`` and one weight for each.
        ModelError: if a Gram matrix is not finite; the message names the layer.
    """
    count = len(windows.input_ids)
    index = torch.zeros(count, dtype=torch.long) if part_index is None else part_index.cpu()
    weights = torch.ones(count) if sample_weights is None else sample_weights.float().cpu()
    _check(count, index, parts, weights)
    collector = _Collector(parts)
    order = torch.argsort(index, stable=True)  # a batch then holds one part, or two
    inner: Any = getattr(model, "base_model", model)  # without the head over the vocabulary
    device = next(model.parameters()).device
    with frozen(model), torch.no_grad(), hooked(collector.hook(model, structure)):
        for places in batches(count, batch_size, progress):
            rows = order[places]
            mask = windows.attention_mask[rows]
            collector.parts, collector.token_weights = index[rows], mask.float() * weights[rows][:, None]
            inner(input_ids=windows.input_ids[rows].to(device), attention_mask=mask.to(device), use_cache=False)
    return collector.result(torch.zeros(parts).index_add_(0, index, weights))


def _check(count: int, index: Tensor, parts: int, weights: Tensor) -> None:
    if count == 0:
        raise DataError("calibration: expected at least one sample, got none; add text to data.calibration.sources")
    if len(index) != count or int(index.min()) < 0 or int(index.max()) >= parts:
        raise DataError(
            f"part_index: expected {count} positions below {parts}, got {len(index)} from {int(index.min())} to {int(index.max())}; "
            "give the part of each sample"
        )
    if weights.shape != (count,):
        raise DataError(f"sample_weights: expected {count} of them, got shape {tuple(weights.shape)}; give one for each sample")


class _Collector:
    """Adds up the moments of each group and part while batches run through the model."""

    def __init__(self, parts: int) -> None:
        self.count = parts
        self.parts, self.token_weights = torch.empty(0), torch.empty(0)
        self.grams: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, Tensor] = {}

    def hook(self, model: nn.Module, structure: ModelStructure) -> Iterator[Any]:
        for group in structure.groups:
            yield model.get_submodule(group.output.module).register_forward_pre_hook(self._on_input(group))

    def _on_input(self, group: UnitGroup) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            states = in_sequences(arguments[0], len(self.parts))
            if group.name not in self.grams:
                self.grams[group.name] = torch.zeros(self.count, group.channels, group.channels, device=states.device)
                self.sums[group.name] = torch.zeros(self.count, group.channels, device=states.device)
                self.tokens[group.name] = torch.zeros(self.count, device=states.device)
            for part in self.parts.unique().tolist():
                tables = (self.grams, self.sums, self.tokens)
                views = InputMoments(*(table[group.name][part] for table in tables))  # added to in place
                rows = self.parts == part
                views.add(states[rows.to(states.device)], self.token_weights[rows])

        return hook

    def result(self, samples: Tensor) -> GramMatrices:
        for name, values in self.grams.items():
            if not bool(torch.isfinite(values).all()):
                raise ModelError(f"calibration: expected finite inputs, got inf or nan in group {name}; use bfloat16 or float32")
        return GramMatrices(self.grams, self.sums, next(iter(self.tokens.values())).cpu(), samples)
