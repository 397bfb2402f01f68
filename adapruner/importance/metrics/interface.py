"""What a metric is, and how values of a tensor's rows become values of a group's channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adapruner.anatomy.units import Member, UnitGroup
from adapruner.importance.statistics import UnitStatistics


@dataclass(frozen=True)
class Evidence:
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

    def score(self, evidence: Evidence) -> Tensor:
        """``[members, channels]`` float32, non-negative; one row per coupled tensor the metric looks at, output last."""
        ...


def spread_to_channels(values: Tensor, member: Member) -> Tensor:
    """``[rows]`` -> ``[channels]``: a row shared by several channels (grouped-query k and v) is credited in equal parts.

    LLM-Pruner's folding credits a KV head with the wrong query heads; going by the traced index map cannot.
    """
    return values[member.index] * member.share


def input_variance(evidence: Evidence) -> Tensor:
    """``[channels]``: variance of each input channel of the output projection over all tokens, each sample at its weight."""
    statistics, weights, name = evidence.statistics, evidence.weights, evidence.group.name
    tokens = weights @ statistics.tokens
    mean = (weights @ statistics.inputs["input_sum", name]) / tokens
    mean_square = (weights @ statistics.inputs["input_square_sum", name]) / tokens
    return (mean_square - mean.square()).clamp_min(0.0)


def weighted_member_rows(evidence: Evidence, kind: str) -> list[Tensor]:
    """For every member ``[rows]``: the weighted sum over samples of a per-sample statistic."""
    table = evidence.statistics.member
    return [evidence.weights @ table[kind, m.module] for m in evidence.group.members]


def stack_members(evidence: Evidence, rows: list[Tensor]) -> Tensor:
    """``[members, channels]`` from one row of values per member."""
    return torch.stack([spread_to_channels(v, m) for v, m in zip(rows, evidence.group.members, strict=True)])
