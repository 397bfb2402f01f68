"""What a metric is, and how values of a tensor's rows become values of a group's channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adapruner.importance.statistics import UnitStatistics
from adapruner.models.units import Member, UnitGroup


@dataclass(frozen=True)
class MetricInputs:
    """What a metric may look at for one group."""

    statistics: UnitStatistics
    group: UnitGroup
    weights: Tensor
    """``[samples]`` float32, non-negative, sum 1: how much each calibration sample speaks."""
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


def spread_to_channels(values: Tensor, member: Member) -> Tensor:
    """``[rows]`` -> ``[channels]``: a row shared by several channels (grouped-query k and v) is credited in equal parts.

    LLM-Pruner's folding credits a KV head with the wrong query heads; going by the traced index map cannot.
    """
    return values[member.index] * member.share


def input_variance(inputs: MetricInputs) -> Tensor:
    """``[channels]``: variance of each input channel of the output projection over all tokens, each sample at its weight."""
    statistics, weights, name = inputs.statistics, inputs.weights, inputs.group.name
    tokens = weights @ statistics.tokens
    mean = (weights @ statistics.inputs["input_sum", name]) / tokens
    mean_square = (weights @ statistics.inputs["input_square_sum", name]) / tokens
    return (mean_square - mean.square()).clamp_min(0.0)


def weighted_member_rows(inputs: MetricInputs, kind: str) -> list[Tensor]:
    """For every member ``[rows]``: the weighted sum over samples of a per-sample statistic."""
    table = inputs.statistics.member
    return [inputs.weights @ table[kind, m.module] for m in inputs.group.members]


def stack_members(inputs: MetricInputs, rows: list[Tensor]) -> Tensor:
    """``[members, channels]`` from one row of values per member."""
    return torch.stack([spread_to_channels(v, m) for v, m in zip(rows, inputs.group.members, strict=True)])
