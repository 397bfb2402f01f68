"""Statistics and Gram matrices collected by all ranks together: each runs its part of the calibration pool through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.errors import AdaPrunerError
from adapruner.importance.gram import collect_grams
from adapruner.importance.inverse_gram import REFIT_STATISTICS
from adapruner.importance.statistics import collect_statistics
from adapruner.importance.summed_gradients import SUMMED_STATISTICS
from adapruner.models.units import ModelStructure
from adapruner.search.split import select_rows

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

    def own(part: Any, rows: Tensor) -> Tensors:
        return collect_statistics(model, structure, part, needs=needs - whole, batch_size=size, progress=progress).to_tensors()

    result = {}
    for name, parts in _of_all(ranks, windows, size, own):
        result[name] = parts[0] if name.startswith("weights/") else torch.cat(parts)
    if whole:
        rest = collect_statistics(model, structure, windows, needs=whole, batch_size=size)
        result |= {f"weights/{kind}/{owner}": values for (kind, owner), values in rest.weights.items()}
    return result


def share_grams(model: nn.Module, structure: ModelStructure, windows: Any, index: Tensor, parts: int, size: int, progress: Any) -> Tensors:
    """:func:`collect_grams` over the whole pool, flat: the ranks' sums are added in their order."""

    def own(part: Any, rows: Tensor) -> Tensors:
        return collect_grams(model, structure, part, index[rows], parts, batch_size=size, progress=progress).to_tensors()

    if Ranks().size == 1:
        return own(windows, torch.arange(len(index)))
    return {name: sum(found, start=torch.zeros(())) for name, found in _of_all(Ranks(), windows, size, own)}


def _of_all(ranks: Ranks, windows: Any, size: int, own: Callable[[Any, Tensor], Tensors]) -> Iterator[tuple[str, list[Tensor]]]:
    """Name -> what every rank found in its part of the windows. What one refuses is raised on all: none may wait for the others.

    A part is whole batches one after the other, as equally as can be.
    """
    samples = len(windows.input_ids)
    first, last = (-(-samples // size) * rank // ranks.size * size for rank in (ranks.rank, ranks.rank + 1))
    rows = torch.arange(first, min(last, samples))
    found: Tensors = {}
    refusal: AdaPrunerError | None = None
    try:
        if len(rows):
            found = own(select_rows(windows, rows), rows)
    except AdaPrunerError as error:
        refusal = error
    for other in ranks.gather(refusal):
        if other is not None:
            raise other
    for name in sorted({name for names in ranks.gather(list(found)) for name in names}):
        yield name, [values for values in ranks.gather(found.get(name)) if values is not None]
