"""From scores of coupled tensors' channels to one score per unit (LLM-Pruner, arXiv 2305.11627, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from adapruner.errors import ConfigurationError, nearest
from adapruner.models.units import UnitGroup

#: Over the coupled tensors: ``[members, channels]`` -> ``[channels]``.
MEMBER_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda s: s.sum(0),
    "mean": lambda s: s.mean(0),
    "max": lambda s: s.amax(0),
    "prod": lambda s: s.prod(0),
    "first": lambda s: s[0],
}
#: Over a unit's channels: ``[units, channels_per_unit]`` -> ``[units]``.
HEAD_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda s: s.sum(1),
    "mean": lambda s: s.mean(1),
    "max": lambda s: s.amax(1),
}


def reduce_to_units(scores: Tensor, group: UnitGroup, reduction: str = "sum", head_reduction: str = "sum") -> Tensor:
    """``[members, channels]`` -> ``[units]``: over the coupled tensors first, then over the unit's channels.

    Raises:
        ConfigurationError: if a reduction is unknown.
    """
    return over_head(over_members(scores, reduction), group, head_reduction)


def over_members(scores: Tensor, reduction: str = "sum") -> Tensor:
    """``[members, channels]`` -> ``[channels]``.

    Raises:
        ConfigurationError: if the reduction is unknown.
    """
    return _known("reduction", reduction, MEMBER_REDUCTIONS)(scores)


def over_head(scores: Tensor, group: UnitGroup, reduction: str = "sum") -> Tensor:
    """``[channels]`` -> ``[units]``.

    Raises:
        ConfigurationError: if the reduction is unknown.
    """
    return _known("head_reduction", reduction, HEAD_REDUCTIONS)(scores.view(group.units, group.channels_per_unit))


def _known(argument: str, value: str, known: dict[str, Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    if value not in known:
        raise ConfigurationError(f"{argument}: expected a known reduction, got {value!r}; {nearest(value, known)}")
    return known[value]
