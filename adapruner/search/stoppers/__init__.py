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


def make_stopper(name: str, startup: int) -> Any:
    """The pruner of a name."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return STOPPERS.find(name).make(startup)
