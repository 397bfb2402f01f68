"""Milliseconds per unit: measured on the device, used by latency budgets, corrected where the device says otherwise.

The latency of a pruned model is modelled by a straight line: a dense model's time less so many milliseconds for each removed unit, of
attention and of FFN (:func:`adapruner.search.device_latency.measure_table`). A real device has steps and plateaus that a line does not
have, so a plan is timed once and the line turned (:func:`correct`) until both agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapruner.errors import ConfigurationError
from adapruner.models.units import ModelStructure

#: One correction changes the cost of a unit by at most this factor: a noisy measurement must not throw the next plan far off.
LARGEST_CORRECTION = 4.0


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per unit on one device."""

    per_unit_ms: Mapping[str, float]
    """``attention`` and ``ffn`` -> ms that one unit of one layer takes of a forward, above 0."""
    whole_ms: float
    """Median time of one forward of the whole dense model over ``[batch_size, seq_len]`` tokens."""
    seq_len: int
    batch_size: int
    device: str
    """In words, with threads or name and the type of the weights."""

    def __post_init__(self) -> None:
        numbers = {"whole_ms": self.whole_ms, **{f"per_unit_ms.{kind}": value for kind, value in self.per_unit_ms.items()}}
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise ConfigurationError(f"latency.{name}: expected a positive number of ms, got {value}; measure the table again")

    def predict(self, kept: Mapping[str, list[int]], structure: ModelStructure) -> float:
        """Milliseconds of one forward of the model that keeps these units, by the line."""
        return self.whole_ms - sum((g.units - len(kept[g.name])) * self.per_unit_ms[g.kind] for g in structure.groups)


def correct(table: LatencyTable, predicted: float, measured: float) -> LatencyTable:
    """The table whose line goes through a real measurement; the time of the dense model stays.

    Args:
        predicted: ms that ``table`` gives for a plan.
        measured: ms of the really pruned model, at the table's sizes. Machines drift: take it beside the dense model, in turns
            (``evaluation.cost.measure_latency``), and give ``table.whole_ms * pruned / dense``.

    A plan made again with the corrected table is nearer to the target; one to three rounds bring it within a few percent.
    One round changes costs by a factor of four at most.

    Raises:
        ConfigurationError: if a time is not positive, or the plan was predicted to save nothing.
    """
    for name, value in (("predicted", predicted), ("measured", measured)):
        if not 0 < value < math.inf:
            raise ConfigurationError(f"{name}: expected a positive number of ms, got {value}; measure again")
    saved = table.whole_ms - predicted
    if saved <= 0:
        raise ConfigurationError(
            f"predicted: expected less than the dense model's {table.whole_ms:.6g} ms, got {predicted:.6g}; correct with a plan that prunes"
        )
    factor = min(max((table.whole_ms - measured) / saved, 1.0 / LARGEST_CORRECTION), LARGEST_CORRECTION)
    return replace(table, per_unit_ms={kind: value * factor for kind, value in table.per_unit_ms.items()})
