"""A training that ends after so much time: how many steps fit, which share is used, and when it is over."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta

from adapruner.argument_checks import got
from adapruner.errors import ConfigurationError

_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"\s*".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS))
#: What is known before the number of steps is said: so many steps behind the first, and this share of the budget.
_STEPS_MEASURED, _SHARE_MEASURED = 3, 0.01


def seconds_of(duration: str | float | None, argument: str = "recovery.time_budget") -> float | None:
    """A duration in seconds; ``None`` for none.

    Args:
        duration: a number of seconds, or days, hours, minutes and seconds, the larger unit first.
        argument: what it is called in a refusal.

    Raises:
        ConfigurationError: if it is none, or not above 0.

    >>> seconds_of("45m"), seconds_of("1h30m"), seconds_of(90)
    (2700.0, 5400.0, 90.0)
    """
    if duration is None:
        return None
    seconds = math.nan
    if not isinstance(duration, str):
        seconds = float(duration)
    elif found := _DURATION.fullmatch(duration.strip().lower()):
        seconds = sum(float(found[unit] or 0) * size for unit, size in _UNITS.items())
    elif re.fullmatch(r"\d+(\.\d+)?", duration.strip()):  # seconds that a command line left as text
        seconds = float(duration)
    if not 0 < seconds < math.inf:
        raise ConfigurationError(
            f"{argument}: expected a duration above 0 such as 45m or 1h30m, or a number of seconds, got {got(duration)}; give 45m"
        )
    return seconds


def check_no_time_budget(time_budget: str | float | None) -> None:
    """Refuses a time where other methods are to be recovered alike: they come first, and nobody knows yet how many steps it will hold.

    Raises:
        ConfigurationError: if there is one.
    """
    if time_budget is not None:
        raise ConfigurationError(
            f"report.compare_recovered: expected a number of steps for all, got recovery.time_budget {time_budget}; give steps, or leave "
            "one of them out"
        )


def check_has_unit(argument: str, text: str) -> None:
    """Refuses a time without a unit where a bare number counts steps.

    Raises:
        ConfigurationError: for ``"200"`` and ``"1.5"``.
    """
    if re.fullmatch(r"[+-]?\d*\.?\d+", text.strip()):
        raise ConfigurationError(
            f"{argument}: expected a number of steps, or a time with a unit such as 45m, got {text!r}; leave out the quotes"
        )
    seconds_of(text, argument)


def duration_in_words(seconds: float) -> str:
    """A duration as the terminal says it.

    >>> duration_in_words(2700), duration_in_words(4.26)
    ('0:45:00', '4.3 s')
    """
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.1f} s"


@dataclass
class TimeBudget:
    """The time of one training, over all attempts of a run that was ended in between.

    Where several processes train together, all of them are told the same seconds, and so decide alike.

    Args:
        seconds: of training, whatever belongs to it: checkpoints and looks at held-out text included.
        most_steps: optimizer steps that end it earlier; ``None`` for no such bound.

    >>> budget = TimeBudget(10.0, most_steps=None)
    >>> for step in range(1, 5):  # a step a second, but for the first
    ...     budget.after_step(step, 2.0 + step)
    >>> budget.planned_steps, budget.share, budget.is_over
    (8, 0.6, False)
    """

    seconds: float
    most_steps: int | None = None
    used: float = 0.0
    """Seconds so far."""
    step: int = 0
    """Optimizer steps so far."""
    _first: tuple[int, float] | None = None

    def after_step(self, step: int, used: float) -> None:
        """An optimizer step is done.

        Args:
            step: how many there were.
            used: seconds that the training took so far.
        """
        self.step, self.used = step, used
        if self._first is None:  # the first of an attempt allocates and compiles: it says nothing of the others
            self._first = step, used

    @property
    def seconds_a_step(self) -> float | None:
        """Mean over this attempt, without its first; ``None`` before there is another."""
        if self._first is None or self.step <= self._first[0]:
            return None
        return (self.used - self._first[1]) / (self.step - self._first[0])

    @property
    def is_measured(self) -> bool:
        """Whether :attr:`planned_steps` rests on enough to be said."""
        if self._first is None:
            return False
        return self.step - self._first[0] >= _STEPS_MEASURED and self.used - self._first[1] >= _SHARE_MEASURED * self.seconds

    @property
    def planned_steps(self) -> int | None:
        """Steps of the whole training at this pace; ``None`` before there is one."""
        pace = self.seconds_a_step
        if pace is None:
            return None
        in_time = self.step + max(0, round((self.seconds - self.used) / max(pace, 1e-9)))
        return in_time if self.most_steps is None else min(in_time, self.most_steps)

    @property
    def share(self) -> float:
        """Part of the training that is behind, from 0 to 1: of its time, or of its steps where these end it earlier."""
        of_steps = 0.0 if self.most_steps is None else self.step / self.most_steps
        return min(1.0, max(self.used / self.seconds, of_steps))

    @property
    def is_over(self) -> bool:
        """Whether another step would end farther behind the budget than this one ended before it."""
        return self.used + (self.seconds_a_step or 0.0) / 2 >= self.seconds

    def plan_in_words(self) -> str:
        """How many steps the budget holds, once that is known."""
        pace, steps = self.seconds_a_step or 0.0, self.planned_steps
        time = duration_in_words(self.seconds)
        if steps == self.most_steps:
            return f"recovery: at {pace:.2g} s a step all {steps:,} steps fit into {time}"
        return f"recovery: at {pace:.2g} s a step {time} of training hold about {steps:,} steps"
