"""When a bad trial stops before it has seen the whole search split: Optuna's pruners (of trials, not of models) by name."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from adapruner.registry import Registry


class Stopper(Protocol):
    """Makes an Optuna pruner."""

    name: str
    sees_chunks_alone: bool
    """Whether it is told each chunk's own value; else the value over all chunks so far."""

    def make(self, startup: int) -> Any:
        """An Optuna pruner that stops no trial before ``startup`` trials are finished, if it compares with others."""


STOPPERS: Registry[Stopper] = Registry("early_stopping", __name__, "adapruner.stoppers")
register_stopper = STOPPERS.add_class


@register_stopper
class Median:
    """Stops what is worse than the median of earlier trials after as many chunks."""

    name, sees_chunks_alone = "median", False

    def make(self, startup: int) -> Any:
        import optuna

        return optuna.pruners.MedianPruner(n_startup_trials=startup, n_min_trials=4)


@register_stopper
class Wilcoxon:
    """Stops what is worse than the best trial by a signed-rank test over chunks."""

    name, sees_chunks_alone = "wilcoxon", True

    def make(self, startup: int) -> Any:
        import optuna

        return optuna.pruners.WilcoxonPruner(p_threshold=0.1)


@register_stopper
class Halving:
    """Stops what is not in the better half after one chunk, two, four (Jamieson and Talwalkar, arXiv 1502.07943)."""

    name, sees_chunks_alone = "halving", False

    def make(self, startup: int) -> Any:
        import optuna

        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)


@register_stopper
class Never:
    """Stops no trial."""

    name, sees_chunks_alone = "none", False

    def make(self, startup: int) -> Any:
        import optuna

        return optuna.pruners.NopPruner()


def make_stopper(name: str, startup: int) -> Any:
    """The pruner of a name."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return STOPPERS.find(name).make(startup)
