"""How the next trial is chosen: Optuna's samplers by name, one file each, seeded anew for every trial.

A user's own is a class like these, registered by the same decorator:

>>> import optuna
>>> @register_sampler
... class QuasiRandom:
...     name, several_objectives = "quasi_random", True
...
...     def make(self, seed, startup, objectives):
...         return optuna.samplers.QMCSampler(seed=seed)
>>> "quasi_random" in SAMPLERS
True
>>> SAMPLERS.remove("quasi_random")
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from adapruner.registry import Registry


class Sampler(Protocol):
    """Makes an Optuna sampler."""

    name: str
    several_objectives: bool
    """Whether it can search two objectives at once."""

    def make(self, seed: int, startup: int, objectives: int) -> Any:
        """An Optuna sampler for one trial.

        Args:
            seed: depends on the trial's number alone, so that a resumed search asks for what an unbroken one asks for.
            startup: trials before its model begins to count; drawn at random where none is enqueued.
            objectives: 1 or 2.
        """


SAMPLERS: Registry[Sampler] = Registry("sampler", __name__, "adapruner.samplers")
register_sampler = SAMPLERS.add_class


def make_sampler(name: str, seed: int, startup: int, objectives: int = 1, fixed: dict[str, Any] | None = None) -> Any:
    """The sampler of a name for one trial, with :meth:`Sampler.make`'s arguments.

    Args:
        fixed: dimensions that keep a value in this trial.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = SAMPLERS.find(name).make(seed, startup, objectives)
        return optuna.samplers.PartialFixedSampler(fixed, sampler) if fixed else sampler
