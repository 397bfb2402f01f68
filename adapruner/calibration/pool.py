"""The calibration pool as the search sees it: named groups of samples, and a choice made into one weight per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapruner.calibration.choice import CalibrationChoice
from adapruner.data.windows import TextWindows
from adapruner.errors import ConfigurationError, nearest


@dataclass(frozen=True, eq=False)
class CalibrationGroups:
    """Which sample belongs to which source (or cluster)."""

    names: tuple[str, ...]
    index: Tensor
    """``[samples]`` int64, positions in ``names``."""

    def sample_weights(self, weights: Mapping[str, float], argument: str = "source_weights") -> Tensor:
        """``[samples]`` float64 with sum 1: each group's weight shared equally by its samples.

        Raises:
            ConfigurationError: if a group is unknown, or no sample gets a positive weight.
        """
        unknown = sorted(set(weights) - set(self.names))
        if unknown:
            kind = argument.removesuffix("_weights")
            raise ConfigurationError(f"{argument}: expected a calibration {kind}, got {unknown[0]!r}; {nearest(unknown[0], self.names)}")
        per_group = torch.tensor([float(weights.get(n, 0.0)) for n in self.names], dtype=torch.float64)
        counts = torch.bincount(self.index, minlength=len(self.names)).clamp_min(1)
        shared = (per_group / counts)[self.index]
        if float(shared.sum()) <= 0:
            raise ConfigurationError(f"{argument}: expected one positive weight, got none; give one a weight above 0")
        return shared / shared.sum()

    def shares(self, sample_weights: Tensor) -> dict[str, dict[str, Any]]:
        """Group -> ``samples``, how many it has, and ``weight``, the sum of theirs; ``sample_weights`` is ``[samples]``."""
        members = {name: self.index == i for i, name in enumerate(self.names)}
        return {name: {"samples": int(m.sum()), "weight": float(sample_weights[m].sum())} for name, m in members.items()}


@dataclass(frozen=True, eq=False)
class CalibrationPool:
    """All samples of one length, with the groups that weights can be given to."""

    sources: CalibrationGroups
    clusters: CalibrationGroups | None = None
    """k-means clusters of mean hidden states, where asked for."""
    base_weights: Tensor | None = None
    """``[samples]``, 0 or more: what a sample weighs before any choice (the weights of a given set); ``None``: all alike."""

    def __post_init__(self) -> None:
        if self.clusters is not None and len(self.clusters.index) != self.samples:
            raise ConfigurationError(
                f"clusters: expected one for each of {self.samples} samples, got {len(self.clusters.index)}; cluster the same windows"
            )
        base = self.base_weights
        if base is not None and (base.shape != (self.samples,) or not bool((base >= 0).all()) or not 0 < float(base.sum()) < math.inf):
            raise ConfigurationError(
                f"base_weights: expected {self.samples} finite weights of 0 or more with a positive sum, got {tuple(base.shape)} with sum "
                f"{float(base.sum())}; give those of this pool"
            )

    @classmethod
    def of_windows(
        cls, windows: TextWindows, clusters: CalibrationGroups | None = None, base_weights: Tensor | None = None
    ) -> CalibrationPool:
        """The pool of some windows, its groups their sources."""
        return cls(CalibrationGroups(tuple(windows.source_names), windows.source_index), clusters, base_weights)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.sources.index)

    def sample_weights(self, choice: CalibrationChoice = CalibrationChoice()) -> Tensor:
        """``[samples]`` float32, non-negative, sum 1: the base weights times those of the choice.

        Raises:
            ConfigurationError: if the choice names what the pool does not have, or leaves no sample with a weight.
        """
        weights = torch.full((self.samples,), 1.0 / self.samples, dtype=torch.float64)
        if self.base_weights is not None:
            weights = weights * self.base_weights.double().cpu()
        if choice.source_weights is not None:
            weights = weights * self.sources.sample_weights(choice.source_weights)
        if choice.cluster_weights is not None:
            if self.clusters is None:
                raise ConfigurationError("cluster_weights: expected a pool with clusters, got one without; set data.calibration.clusters")
            weights = weights * self.clusters.sample_weights(choice.cluster_weights, "cluster_weights")
        if choice.samples is not None:
            weights = weights * self._only(choice.samples)
        if float(weights.sum()) <= 0:
            raise ConfigurationError("calibration: expected one sample with a positive weight, got none; the choices exclude each other")
        if choice.count is not None:
            weights = _draw(weights, choice.count, choice.seed)
        return (weights / weights.sum()).float()

    def _only(self, samples: list[int]) -> Tensor:
        if max(samples) >= self.samples:
            raise ConfigurationError(f"calibration.samples: expected positions below {self.samples}, got {max(samples)}; name others")
        mask = torch.zeros(self.samples, dtype=torch.float64)
        mask[samples] = 1.0
        return mask


def _draw(weights: Tensor, count: int, seed: int) -> Tensor:
    """1 for ``count`` samples drawn without replacement at the odds of their weights, else 0 (Gumbel top-k, arXiv 1903.06059).

    The same seed gives the same noise whatever the weights, so that a small change of weights changes few samples.
    """
    noise = torch.rand(len(weights), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp_min(1e-300)
    keys = weights.log() - (-noise.log()).log()
    positive = int((weights > 0).sum())
    drawn = torch.zeros_like(weights)
    drawn[keys.topk(min(count, positive)).indices] = 1.0
    return drawn
