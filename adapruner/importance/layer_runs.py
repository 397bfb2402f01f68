"""Runs of layers whose float32 accumulators are in memory together; each run costs a pass over the calibration pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from adapruner.models.units import ModelStructure, UnitGroup

#: Values held at a time: 1 GiB.
ACCUMULATED_VALUES = 1 << 28


def layer_runs(structure: ModelStructure, values: Callable[[UnitGroup], int]) -> Iterator[range]:
    """Ranges of layers, as many in each as fit, and one at least.

    Args:
        values: how many values a group accumulates.
    """
    start = held = 0
    for layer in range(structure.layers):
        size = sum(values(group) for group in structure.of_layer(layer))
        if layer > start and held + size > ACCUMULATED_VALUES:
            yield range(start, layer)
            start, held = layer, 0
        held += size
    yield range(start, structure.layers)
