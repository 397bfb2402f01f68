"""Statistics and Gram matrices collected by all ranks together: each runs its part of the calibration pool through the model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.errors import AdaPrunerError
from adapruner.importance.gram import GramMatrices, collect_grams
from adapruner.importance.inverse_gram import REFIT_STATISTICS
from adapruner.importance.statistics import collect_statistics
from adapruner.importance.summed_gradients import SUMMED_STATISTICS
from adapruner.models.units import ModelStructure

Tensors = dict[str, Tensor]


def share_statistics(model: nn.Module, structure: ModelStructure, windows: Any, needs: frozenset[str], size: int, progress: Any) -> Tensors:
    """:func:`collect_statistics` over the whole pool, flat. What is kept per sample is exactly what one rank would have.

    Sums over the whole pool, which a modulus or an inverse follows, are the same work on every rank.

    Args:
        size: samples in one pass.
    """
    ranks, whole = Ranks(), needs.intersection({*SUMMED_STATISTICS, *REFIT_STATISTICS})
    if ranks.size == 1:
        return collect_statistics(model, structure, windows, needs=needs, batch_size=size, progress=progress).to_tensors()
    rows = _part(len(windows.input_ids), size, ranks)

    def own() -> Tensors:
        if not len(rows):
            return {}
        part = _select(windows, rows)
        return collect_statistics(model, structure, part, needs=needs - whole, batch_size=size, progress=progress).to_tensors()

    found, names = _on_all(ranks, own)
    result = {}
    for name in names:
        parts = [values for values in ranks.gather(found.get(name)) if values is not None]
        result[name] = parts[0] if name.startswith("weights/") else torch.cat(parts)
    if whole:
        rest = collect_statistics(model, structure, windows, needs=whole, batch_size=size)
        result |= {f"weights/{kind}/{owner}": values for (kind, owner), values in rest.weights.items()}
    return result


def share_grams(model: nn.Module, structure: ModelStructure, windows: Any, index: Tensor, parts: int, size: int, progress: Any) -> Tensors:
    """:func:`collect_grams` over the whole pool, flat: the ranks' sums are added in their order."""
    ranks = Ranks()
    rows = _part(len(windows.input_ids), size, ranks)

    def own() -> Tensors:
        if not len(rows):
            return {}
        part: GramMatrices = collect_grams(model, structure, _select(windows, rows), index[rows], parts, batch_size=size, progress=progress)
        return part.to_tensors()

    if ranks.size == 1:
        return collect_grams(model, structure, windows, index, parts, batch_size=size, progress=progress).to_tensors()
    found, names = _on_all(ranks, own)
    return {name: sum((v for v in ranks.gather(found.get(name)) if v is not None), start=torch.zeros(())) for name in names}


def _select(windows: Any, rows: Tensor) -> Any:
    """A foreign project's windows may be no more than these three tensors."""
    return SimpleNamespace(**{name: getattr(windows, name)[rows] for name in ("input_ids", "labels", "attention_mask")})


def _part(samples: int, size: int, ranks: Ranks) -> Tensor:
    """This rank's samples: whole batches one after the other, as equally as can be."""
    batches = -(-samples // size)
    first, last = (batches * rank // ranks.size * size for rank in (ranks.rank, ranks.rank + 1))
    return torch.arange(first, min(last, samples))


def _on_all(ranks: Ranks, own: Callable[[], Tensors]) -> tuple[Tensors, list[str]]:
    """What this rank has, and the names of what any has. What one refuses is raised on all: none may wait for the others."""
    found: Tensors = {}
    refusal: AdaPrunerError | None = None
    try:
        found = own()
    except AdaPrunerError as error:
        refusal = error
    for other in ranks.gather(refusal):
        if other is not None:
            raise other
    return found, sorted({name for names in ranks.gather(list(found)) for name in names})
