"""One importance metric, one file, one paper; ``docs/add-a-metric.md`` shows how to write one.

A metric is a class with a ``name``, a ``paper``, the statistics it ``needs``, and ``score``. Registered, it is known to recipes,
configurations and the search.
"""

from __future__ import annotations

from typing import TypeVar

from adapruner.errors import ConfigurationError, nearest
from adapruner.importance.metrics.interface import Metric
from adapruner.importance.statistics import STATISTICS
from adapruner.registry import Registry

Given = TypeVar("Given", bound="Metric | type[Metric]")


def _check_needs(metric: Metric) -> None:
    unknown = sorted(metric.needs.difference(STATISTICS))
    if unknown:
        raise ConfigurationError(f"metric.needs: expected known statistics, got {unknown[0]!r}; {nearest(unknown[0], STATISTICS)}")


METRICS: Registry[Metric] = Registry("metric", __name__, "adapruner.metrics", _check_needs)
find_metric = METRICS.find


def register_metric(metric: Given) -> Given:
    """Makes a metric known by its name: a decorator of its class, or a call with an instance.

    Raises:
        ConfigurationError: if the name is taken, or the metric needs a statistic that nobody collects.

    >>> @register_metric
    ... class InputNorm:
    ...     name, paper, needs = "input_norm", "an example", frozenset({"input_square_sum"})
    ...
    ...     def score(self, inputs):
    ...         return (inputs.weights @ inputs.statistics.inputs["input_square_sum", inputs.group.name]).sqrt()[None]
    >>> "input_norm" in METRICS
    True
    >>> METRICS.remove("input_norm")
    """
    return METRICS.add_class(metric)
