"""What a metric is, and how values of a tensor's rows become values of a group's channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adapruner.importance.statistics import UnitStatistics
from adapruner.models.units import UnitGroup


@dataclass(frozen=True)
class MetricInputs:
    """What a metric may look at for one group."""

    statistics: UnitStatistics
    group: UnitGroup
    weights: Tensor
    """``[samples]`` float32, non-negative, sum 1: each calibration sample's weight."""
    seed: int = 0


class Metric(Protocol):
    """Scores of one group's channels: the higher, the more the channel matters."""

    @property
    def name(self) -> str: ...

    @property
    def paper(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]:
        """Names of :data:`adapruner.importance.statistics.STATISTICS`; empty if weights alone suffice."""
        ...

    def score(self, inputs: MetricInputs) -> Tensor:
        """``[members, channels]`` float32, non-negative; one row per coupled tensor the metric looks at, output last."""
        ...


def input_mean_square(inputs: MetricInputs) -> Tensor:
    """``[channels]``: mean square of each input channel of the output projection over all tokens, each sample at its weight."""
    statistics, weights = inputs.statistics, inputs.weights
    return (weights @ statistics.inputs["input_square_sum", inputs.group.name]) / (weights @ statistics.tokens)


def input_variance(inputs: MetricInputs) -> Tensor:
    """``[channels]``: variance of each input channel of the output projection over all tokens, each sample at its weight."""
    statistics, weights = inputs.statistics, inputs.weights
    mean = (weights @ statistics.inputs["input_sum", inputs.group.name]) / (weights @ statistics.tokens)
    return (input_mean_square(inputs) - mean.square()).clamp_min(0.0)


def fixed_rows(inputs: MetricInputs, kind: str) -> list[Tensor]:
    """For every member ``[rows]``: a statistic that sample weights do not change, such as ``l2``."""
    return [inputs.statistics.weights[kind, m.module] for m in inputs.group.members]


def weighted_rows(inputs: MetricInputs, kind: str) -> list[Tensor]:
    """For every member ``[rows]``: the weighted sum over samples of a per-sample statistic."""
    return [inputs.weights @ inputs.statistics.member[kind, m.module] for m in inputs.group.members]


def stack_members(inputs: MetricInputs, rows: list[Tensor]) -> Tensor:
    """``[members, channels]`` from one row of values per member.

    A row shared by several channels (grouped-query k and v) is credited in equal parts. LLM-Pruner's folding credits a KV head with
    the wrong query heads; going by the traced index map cannot.
    """
    return torch.stack([values[m.index] * m.share for values, m in zip(rows, inputs.group.members, strict=True)])


def share_among_channels(per_unit: Tensor, group: UnitGroup) -> Tensor:
    """``[1, channels]`` from ``[units]``: a unit's score in equal parts over its channels."""
    return (per_unit / group.channels_per_unit).repeat_interleave(group.channels_per_unit)[None]
