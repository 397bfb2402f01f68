"""What a recovery says of where it is and why it ended, where a time decides how many steps it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from adapruner.progress import announce, progress_bar
from adapruner.recovery.time_budget import TimeBudget, duration_in_words, seconds_of

Ending: TypeAlias = Literal["steps", "passes", "time budget", "early stop"]
"""What ended a training: its number of steps, or of passes over its text, its time, or held-out text."""
ENDINGS: dict[str, str] = {
    "steps": "its number of steps",
    "passes": "its number of passes over the text",
    "time budget": "its time budget",
    "early stop": "held-out text, which gained no more",
}


class PlanTold:
    """Says once how many steps the budget holds, as soon as enough is measured."""

    def __init__(self) -> None:
        self._told = False

    def after_step(self, budget: TimeBudget) -> None:
        """A step is done."""
        if not self._told and budget.is_measured:
            self._told = True
            announce(budget.plan_in_words())


@contextmanager
def recovery_bar(most_steps: int | None, time_budget: str | float | None) -> Iterator[Callable[[int, TimeBudget, str], None]]:
    """A bar over the steps, or, where a time is given, over the hundredths of the training; yields ``advance(step, budget, note)``."""
    seconds, told = seconds_of(time_budget), PlanTold()
    with progress_bar("recovery", 100 if seconds is not None else most_steps or 0) as advance:

        def at(step: int, budget: TimeBudget, note: str) -> None:
            if seconds is None:
                return advance(step, note)
            told.after_step(budget)
            steps = f"step {step:,}" if budget.planned_steps is None else f"step {step:,} of about {budget.planned_steps:,}"
            advance(round(100 * budget.share), f"{steps}, {note}")

        yield at


def ending_in_words(steps: int, seconds: float, ended_by: Ending) -> str:
    """The line behind a recovery.

    >>> ending_in_words(412, 2701.2, "time budget")
    'recovery: 412 steps in 0:45:01, ended by its time budget'
    """
    return f"recovery: {steps:,} step{'s' * (steps != 1)} in {duration_in_words(seconds)}, ended by {ENDINGS[ended_by]}"
