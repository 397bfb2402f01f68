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


def reduce_to_units(scores: Tensor, group: UnitGroup, over_members: str = "sum", over_head: str = "sum") -> Tensor:
    """``[members, channels]`` -> ``[units]``: over the coupled tensors first, then over the unit's channels.

    Raises:
        ConfigurationError: if a reduction is unknown.
    """
    for argument, value, known in (("reduction", over_members, MEMBER_REDUCTIONS), ("head_reduction", over_head, HEAD_REDUCTIONS)):
        if value not in known:
            raise ConfigurationError(f"{argument}: expected a known reduction, got {value!r}; {nearest(value, known)}")
    channels = MEMBER_REDUCTIONS[over_members](scores)
    return HEAD_REDUCTIONS[over_head](channels.view(group.units, group.channels_per_unit))
