"""Searches that each lack one thing, for :mod:`quality` and :mod:`real_models`: does searching data and metric together pay?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from adapruner.search.config import ORDERS
from adapruner.search.space import SearchSpace


@dataclass(frozen=True)
class Arm:
    """How one of them searches; by default adapruner's own way."""

    space: SearchSpace = field(default_factory=SearchSpace)
    order: str = ORDERS[0]
    sampler: str = "tpe"
    refit: bool = True
    """Whether trials are judged after the local refit."""
    held_out: int = 0
    """Further windows of the search split for the second look alone."""


def arms() -> dict[str, Arm]:
    """Those of ``configs/ablations``, and a search whose trials are judged as they are cut."""
    whole = SearchSpace()
    still = {"gamma": [0.0, 0.0], "log_head_multiplier": [0.0, 0.0], "depth_slope": [0.0, 0.0], "depth_curve": [0.0, 0.0]}
    return {
        "data only": Arm(replace(whole, metrics=["taylor_second"], reductions=["sum"])),
        "metric only": Arm(replace(whole, source_logit=0.0)),
        "one after the other": Arm(order="data_first"),
        "random search": Arm(sampler="random"),
        "no allocation": Arm(replace(whole, **still)),
        "judged as cut": Arm(refit=False),
    }
