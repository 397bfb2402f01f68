"""How much the choice of calibration samples matters: the same recipe on random sets of the same size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationPool
from adapruner.data.calibration_set import effective_samples
from adapruner.errors import ConfigurationError


def random_sets(pool: CalibrationPool, choice: CalibrationChoice, repeats: int = 8, seed: int = 0) -> list[CalibrationChoice]:
    """Choices to compare a winner with: as many samples as it effectively has, drawn uniformly and without replacement.

    Args:
        pool: the pool at the winner's length.
        choice: the winner.
        repeats: how many sets.
        seed: for the draws; a larger ``repeats`` begins with the same sets.

    Returns:
        choices that name their samples, at the winner's length; empty where the winner has the whole pool: nothing can be drawn.

    Raises:
        ConfigurationError: if ``repeats`` is below 1, or the choice does not fit the pool.
    """
    if repeats < 1:
        raise ConfigurationError(f"repeats: expected 1 or more random sets, got {repeats}; give 8")
    size = set_size(pool, choice)
    if size >= pool.samples:
        return []
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(pool.samples, generator=generator)[:size].sort().values.tolist() for _ in range(repeats)]
    return [CalibrationChoice(samples=draw, seq_len=choice.seq_len) for draw in draws]


def set_size(pool: CalibrationPool, choice: CalibrationChoice) -> int:
    """The effective number of samples of a choice (:func:`adapruner.data.calibration_set.effective_samples`), rounded; 1 or more."""
    return max(1, round(effective_samples(pool.sample_weights(choice))))


@dataclass(frozen=True)
class CalibrationSpread:
    """What the same recipe reaches with other samples; NLL in nats per token on the search split."""

    size: int
    """Samples in each random set."""
    values: tuple[float, ...]
    """One value for each random set."""
    chosen: float
    """With the chosen weights."""

    @property
    def mean(self) -> float:
        """Mean of the values that are finite; nan where none is."""
        return statistics.fmean(self._finite) if self._finite else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the finite values between sets (n - 1 in the denominator), 0 with fewer than two."""
        return statistics.stdev(self._finite) if len(self._finite) > 1 else 0.0

    @property
    def _finite(self) -> Sequence[float]:
        return [v for v in self.values if math.isfinite(v)]

    def to_dict(self) -> dict[str, Any]:
        """The fields of :class:`adapruner.report.sections.Spread`; what is not finite becomes ``None``."""
        mean, chosen, *values = (v if math.isfinite(v) else None for v in (self.mean, self.chosen, *self.values))
        return {"size": self.size, "values": values, "mean": mean, "std": self.std, "chosen": chosen}
