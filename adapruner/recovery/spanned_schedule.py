"""A learning-rate schedule stretched or compressed over a training whose length is a time and not a number of steps."""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch

#: Longer schedules are left as they are.
_MOST_POINTS = 1_000_000


class SpannedSchedule:
    """Stands in the place of a scheduler: learning rates at a share of the training are those of the scheduler at that share of its length.

    Whoever knows the share says it by :meth:`place`, on all ranks the same; :meth:`step` does nothing.

    Args:
        scheduler: fresh, as it was built with its optimizer; it is left as it is.
        length: its steps.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = SpannedSchedule(torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=10), 10)
    >>> schedule.place(0.25)
    >>> optimizer.param_groups[0]["lr"]
    0.75
    """

    def __init__(self, scheduler: Any, length: int) -> None:
        self.optimizer = scheduler.optimizer
        self.share = 0.0
        self._rates = _rates(scheduler, length)

    @property
    def falls(self) -> bool:
        """Whether it has an end to reach: a warm-up alone is over after its own steps, however long the training is."""
        return any(rate < before for group in self._rates for before, rate in pairwise(group))

    def place(self, share: float) -> None:
        """Sets the learning rates of the next step.

        Args:
            share: of the training that is behind, from 0 to 1.
        """
        self.share = min(1.0, max(0.0, share))
        for group, rates in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = _at(rates, self.share)

    def step(self, *arguments: Any) -> None:
        """Nothing: where it is, :meth:`place` says."""

    def get_last_lr(self) -> list[float]:
        """Learning rate of each group of parameters."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"share": self.share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on there."""
        self.place(float(state.get("share", 0.0)))


def length_of(scheduler: Any) -> int | None:
    """Steps until a scheduler has come to its end; ``None`` where it does not say.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> length_of(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40))
    40
    >>> length_of(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)) is None
    True
    """
    milestones, parts = getattr(scheduler, "_milestones", None), getattr(scheduler, "_schedulers", None)
    if parts:  # one after the other, or all at once
        if milestones is not None:
            last = length_of(parts[-1])
            return None if last is None else int(milestones[-1]) + last
        lengths = [length_of(part) for part in parts]
        return max((length for length in lengths if length is not None), default=None)
    found = next((getattr(scheduler, name) for name in ("total_iters", "T_max", "total_steps") if hasattr(scheduler, name)), None)
    return None if found is None else int(found)


def span(scheduler: Any, most_steps: int | None) -> SpannedSchedule | None:
    """The schedule over a training of any length; ``None`` for one that has no end, or never falls.

    Args:
        scheduler: fresh. One that does not say how long it is, such as a ``LambdaLR``, was made for ``most_steps``.
        most_steps: of the training; ``None`` where nobody knows.
    """
    length = length_of(scheduler) or most_steps
    if length is None or not 0 < length <= _MOST_POINTS or isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return None
    spanned = SpannedSchedule(scheduler, length)
    return spanned if spanned.falls else None


def _rates(scheduler: Any, length: int) -> list[list[float]]:
    """Per group of parameters the learning rate at each of the schedule's steps ``[length + 1]``, found by running a copy."""
    optimizer = scheduler.optimizer
    shared: dict[int, Any] = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    trial = copy.deepcopy(scheduler, shared)
    rates: list[list[float]] = [[float(group["lr"])] for group in trial.optimizer.param_groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a scheduler whose optimizer makes no steps
        for _ in range(length):
            with suppress(ValueError):  # OneCycleLR has no step behind its last
                trial.step()
            for known, group in zip(rates, trial.optimizer.param_groups, strict=True):
                known.append(float(group["lr"]))
    return rates


def _at(rates: list[float], share: float) -> float:
    """Between two points of a schedule, in proportion."""
    place = share * (len(rates) - 1)
    below = min(int(place), len(rates) - 2)
    return rates[below] + (place - below) * (rates[below + 1] - rates[below])
