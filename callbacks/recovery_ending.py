"""When the Trainer's training ends, where its number of steps is not what decides: after so much time, or by held-out text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule, Trainer

from adapruner.callbacks.recovery_bar import RecoveryBar
from adapruner.models.model_attribute import held_model
from adapruner.progress import announce
from adapruner.recovery.early_stop import EarlyStop, EarlyStopConfig, held_out_nll, trained_weights
from adapruner.recovery.spanned_schedule import SpannedSchedule, span
from adapruner.recovery.time_budget import TimeBudget, seconds_of
from adapruner.recovery.training_bar import Ending, PlanTold, ending_in_words


class RecoveryEnding:
    """Ends a Trainer's training, on all ranks at the same step, and leads its learning rate to the schedule's end there.

    Args:
        time_budget: as of :class:`adapruner.callbacks.LoRARecoveryCallback`; ``None``: its steps or passes decide.
        early_stop: likewise.
        model_attribute: of the module, where the model is.
    """

    def __init__(self, time_budget: str | float | None, early_stop: EarlyStopConfig, model_attribute: str) -> None:
        self.seconds, self.early_stop, self.model_attribute = seconds_of(time_budget), early_stop, model_attribute
        self.held_out: Any = None
        """Windows that are judged on, set before the training."""
        self.looks: EarlyStop | None = None
        self._looks_before: Mapping[str, Any] | None = None
        self._last_step: int | None = None
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
        """Training starts; how many steps it has at most is known now. Before the first of them the held-out text is looked at."""
        most = trainer.estimated_stepping_batches
        self.ended_by, self._step = None, trainer.global_step
        self._last_step = int(most) if math.isfinite(most) else None
        self.budget = None if self.seconds is None else TimeBudget(self.seconds, self._last_step)
        self._find_looks()
        if self.looks is not None and not self.looks.looks:
            self._look(trainer, self.looks)
        if isinstance(trainer.progress_bar_callback, RecoveryBar):  # which may have been that of another training
            trainer.progress_bar_callback.is_timed, trainer.progress_bar_callback.planned_steps = self.budget is not None, None

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
        if self.looks is not None:
            is_last = self.ended_by is not None or self._step == self._last_step
            if self.looks.is_due(self._step) or is_last:
                self._look(trainer, self.looks)
            if self.looks.is_over and not is_last:
                self.ended_by = "early stop"
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

    def _look(self, trainer: Trainer, looks: EarlyStop) -> None:
        if looks.has_seen(trainer.global_step):
            return
        model = held_model(trainer.lightning_module, self.model_attribute)
        with trainer.precision_plugin.forward_context():
            nll = held_out_nll(model, self.held_out, self.early_stop.batch_size)
        looks.look(trainer.global_step, float(trainer.strategy.broadcast(nll)), lambda: trained_weights(model))
        for logger in trainer.loggers:
            logger.log_metrics({"held_out_nll": nll}, step=trainer.global_step)

    def _find_looks(self) -> None:
        """Those of the run that goes on, where there were any."""
        self.looks = EarlyStop(self.early_stop, len(self.held_out.input_ids)) if self.early_stop else None
        if self.looks is not None and self._looks_before is not None:
            self.looks.load_state_dict(self._looks_before)

    def restore_best(self, pl_module: LightningModule) -> None:
        """The weights of the best look, in a model that is whole again; of a training that had ended before, too."""
        if self.looks is None:
            self._find_looks()
        if self.looks is not None:
            self.looks.restore(held_model(pl_module, self.model_attribute))

    def end(self, trainer: Trainer, seconds: float) -> None:
        """Training is over; says why, where that is not what everybody expects."""
        if self.looks is not None:  # somebody else may have ended it
            self._look(trainer, self.looks)
        if self.ended_by is None and not trainer.should_stop:
            self.ended_by = "steps" if 0 < trainer.max_steps <= trainer.global_step else "passes"
        if (self.seconds is not None or self.early_stop) and self.ended_by is not None:
            announce(ending_in_words(trainer.global_step, seconds, self.ended_by))

    def to_report(self) -> dict[str, Any]:
        """What the report's section on recovery says of it."""
        looks = None if self.looks is None else self.looks.to_report()
        return {"time_budget": self.seconds, "ended_by": self.ended_by, "early_stop": looks}

    def state_dict(self) -> dict[str, Any]:
        """What ended the training, the time that it was given, and what was seen on held-out text."""
        looks = self._looks_before if self.looks is None else self.looks.state_dict()
        return {"time_budget": self.seconds, "ended_by": self.ended_by, "looks": looks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A training that had ended keeps what ended it; one that is judged no more, no best look, which would pass for its result."""
        self.ended_by, self._looks_before = state.get("ended_by"), state.get("looks") if self.early_stop else None

    def had_ended(self, state: Mapping[str, Any]) -> bool:
        """Whether the training that left this state had come to an end that still holds: a longer time goes on."""
        if state.get("ended_by") == "early stop":
            return bool(self.early_stop)
        return state.get("ended_by") == "time budget" and self.seconds is not None and self.seconds <= (state.get("time_budget") or 0.0)
