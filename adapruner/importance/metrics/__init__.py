"""One importance metric, one file, one paper.

A metric is a class with a ``name``, a ``paper``, the statistics it ``needs``, and ``score``. Registering it here makes it
known to recipes, configurations and the search; ``docs/add-a-metric.md`` has the steps.
"""

from __future__ import annotations

from adapruner.errors import ConfigurationError, nearest
from adapruner.importance.metrics.activation_norm import ActivationNorm
from adapruner.importance.metrics.flap_ifv import FluctuationIFV
from adapruner.importance.metrics.flap_wifn import FluctuationWIFN
from adapruner.importance.metrics.flap_wifv import FluctuationWIFV
from adapruner.importance.metrics.gate_fisher import GateFisher
from adapruner.importance.metrics.gate_taylor import GateTaylor
from adapruner.importance.metrics.interface import Metric
from adapruner.importance.metrics.l1 import L1Norm
from adapruner.importance.metrics.l2 import L2Norm
from adapruner.importance.metrics.obs import OptimalBrainSurgeon
from adapruner.importance.metrics.random_score import RandomScore
from adapruner.importance.metrics.taylor_first import TaylorFirst
from adapruner.importance.metrics.taylor_first_cached import TaylorFirstCached
from adapruner.importance.metrics.taylor_mix import TaylorMix
from adapruner.importance.metrics.taylor_second import TaylorSecond
from adapruner.importance.metrics.taylor_vectorize import TaylorVectorize
from adapruner.importance.metrics.wanda_sp import WandaSP
from adapruner.importance.statistics import STATISTICS

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        RandomScore(),
        L1Norm(),
        L2Norm(),
        GateTaylor(),
        GateFisher(),
        TaylorVectorize(),
        TaylorFirst(),
        TaylorFirstCached(),
        TaylorSecond(),
        TaylorMix(),
        ActivationNorm(),
        WandaSP(),
        FluctuationIFV(),
        FluctuationWIFV(),
        FluctuationWIFN(),
        OptimalBrainSurgeon(),
    )
}


def register_metric(metric: Metric) -> None:
    """Makes a metric known by its name to recipes, configurations and the search.

    Raises:
        ConfigurationError: if the name is taken, or the metric needs a statistic that nobody collects.
    """
    if metric.name in METRICS:
        raise ConfigurationError(f"metric: expected a new name, got {metric.name!r}, which is taken; choose another")
    unknown = sorted(metric.needs.difference(STATISTICS))
    if unknown:
        raise ConfigurationError(f"metric.needs: expected known statistics, got {unknown[0]!r}; {nearest(unknown[0], STATISTICS)}")
    METRICS[metric.name] = metric


def find_metric(name: str) -> Metric:
    """The metric of a name.

    Raises:
        ConfigurationError: if there is none; the message has the nearest name.
    """
    if name not in METRICS:
        raise ConfigurationError(f"metric: expected a known metric, got {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


__all__ = ["METRICS", "Metric", "find_metric", "register_metric"]
