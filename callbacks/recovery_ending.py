"""When the Trainer's training ends, where its number of steps is not what decides: after so much time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning import Trainer

from adapruner.callbacks.recovery_bar import RecoveryBar
from adapruner.progress import announce
from adapruner.recovery.spanned_schedule import SpannedSchedule, span
from adapruner.recovery.time_budget import TimeBudget, seconds_of
from adapruner.recovery.training_bar import Ending, PlanTold, ending_in_words


class RecoveryEnding:
    """Ends a Trainer's training, on all ranks at the same step, and leads its learning rate to the schedule's end there.

    Args:
        time_budget: as of :class:`adapruner.callbacks.LoRARecoveryCallback`; ``None`` leaves all of it to the Trainer.
    """

    def __init__(self, time_budget: str | float | None) -> None:
        self.seconds = seconds_of(time_budget)
        self.ended_by: Ending | None = None
        self.budget: TimeBudget | None = None
        self._told = PlanTold()
        self._step = 0
        self._schedules: list[SpannedSchedule] = []

    def span_schedules(self, trainer: Trainer) -> None:
        """Puts stretched schedules into the place of those that step with the optimizer: while they are fresh, before a checkpoint's state.

        A module that makes its own steps keeps its schedules.
        """
        self._schedules = []
        if self.seconds is None or not trainer.lightning_module.automatic_optimization:
            return
        for config in trainer.strategy.lr_scheduler_configs:
            most = trainer.max_steps if trainer.max_steps > 0 else None
            spanned = span(config.scheduler, most) if config.interval == "step" and config.frequency == 1 else None
            if spanned is not None:
                config.scheduler = spanned  # type: ignore[assignment]
                self._schedules.append(spanned)

    def begin(self, trainer: Trainer) -> None:
        """Training starts; how many steps it has at most is known now."""
        most = trainer.estimated_stepping_batches
        self.ended_by, self._step = None, trainer.global_step
        self.budget = None if self.seconds is None else TimeBudget(self.seconds, int(most) if math.isfinite(most) else None)
        if self.budget is not None and isinstance(trainer.progress_bar_callback, RecoveryBar):
            trainer.progress_bar_callback.is_timed = True

    def after_batch(self, trainer: Trainer, seconds: float) -> None:
        """Behind an optimizer step, and only there: gradients that are gathered over several batches are not thrown away.

        Args:
            seconds: of training so far, on this rank; those of the first rank count.
        """
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self.budget is not None:
            self._spend(trainer, self.budget, seconds)
        if self.ended_by is not None:
            trainer.should_stop = True

    def _spend(self, trainer: Trainer, budget: TimeBudget, seconds: float) -> None:
        budget.after_step(trainer.global_step, float(trainer.strategy.broadcast(seconds)))
        for schedule in self._schedules:
            schedule.place(budget.share)
        self._told.after_step(budget)
        if isinstance(trainer.progress_bar_callback, RecoveryBar):
            trainer.progress_bar_callback.planned_steps = budget.planned_steps
        if budget.is_over and not 0 < trainer.max_steps <= trainer.global_step:
            self.ended_by = "time budget"

    def end(self, trainer: Trainer, seconds: float) -> None:
        """Training is over; says why, where that is not what everybody expects."""
        if self.ended_by is None and not trainer.should_stop:
            self.ended_by = "steps" if 0 < trainer.max_steps <= trainer.global_step else "passes"
        if self.seconds is not None and self.ended_by is not None:
            announce(ending_in_words(trainer.global_step, seconds, self.ended_by))

    def to_report(self) -> dict[str, Any]:
        """What the report's section on recovery says of it."""
        return {"time_budget": self.seconds, "ended_by": self.ended_by}

    def state_dict(self) -> dict[str, Any]:
        """What ended the training, and the time that it was given."""
        return self.to_report()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A training that had ended keeps what ended it."""
        self.ended_by = state.get("ended_by")

    def had_ended(self, state: Mapping[str, Any]) -> bool:
        """Whether the training that left this state had come to an end that still holds: a longer time goes on."""
        return state.get("ended_by") == "time budget" and self.seconds is not None and self.seconds <= (state.get("time_budget") or 0.0)
