"""One point of the calibration subspace: what decides the weight of each sample of the pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adapruner.argument_checks import check_fields, check_seed
from adapruner.errors import ConfigurationError


@dataclass(frozen=True)
class CalibrationChoice:
    """Weights of sources and of clusters multiply; samples outside a subset weigh 0."""

    source_weights: dict[str, float] | None = None
    """Calibration source -> weight, shared equally by its samples. ``None``: all samples weigh the same."""
    cluster_weights: dict[str, float] | None = None
    """Cluster (``cluster 0``, ...) -> weight, shared equally by its samples."""
    samples: list[int] | None = None
    """Positions in the pool; the others weigh 0. ``None``: all."""
    count: int | None = None
    """Draw so many samples, at the odds of their weights; those drawn weigh the same. ``None``: no draw."""
    seed: int = 0
    """Seed of the draw."""
    seq_len: int | None = None
    """Which of the pool's lengths in tokens; ``None``: its first."""

    def __post_init__(self) -> None:
        check_fields(self, "recipe.calibration.")
        check_seed("recipe.calibration.seed", self.seed)
        for argument in ("source_weights", "cluster_weights"):
            weights: Mapping[str, float] | None = getattr(self, argument)
            bad = [f"{n}: {w}" for n, w in (weights or {}).items() if not 0 <= w < math.inf]
            if bad:
                raise ConfigurationError(f"{argument}: expected finite weights of 0 or more, got {bad[0]}; give 0 to leave one out")
        if self.count is not None and self.count < 1:
            raise ConfigurationError(f"calibration.count: expected 1 or more, got {self.count}; give null to draw no subset")
        if self.samples is not None and (not self.samples or min(self.samples) < 0):
            raise ConfigurationError(f"calibration.samples: expected positions of 0 or more, got {self.samples}; give null for all")

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any] | None) -> CalibrationChoice:
        """The inverse of :meth:`to_dict`; without a record, the choice of all samples alike."""
        return cls(**(record or {}))
