"""The Trainer's progress bar over all steps of the recovery, in the place of one for each pass over its text."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console

from adapruner.bar_columns import bar_columns


class RecoveryBar(RichProgressBar):
    """Lightning's own, which says ``Epoch 0/-2`` where steps are counted and not epochs, begins anew with every pass over the text, and
    so never says how long all of it will take."""

    is_timed = False
    """Whether a time ends the training: set by the recovery."""
    planned_steps: int | None = None
    """Steps that it will have; ``None`` before that is known."""

    @property
    def total_train_batches(self) -> int | float:
        """Optimizer steps of the whole training, where these are what ends it; else batches of a pass."""
        if self.is_timed:
            return self.planned_steps or math.inf
        return int(self.trainer.max_steps) if self._counts_steps else super().total_train_batches

    @property
    def _counts_steps(self) -> bool:
        return self.is_timed or (self.trainer.max_epochs in (None, -1) and self.trainer.max_steps > 0)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The bar of the first pass goes on in the others."""
        if self._counts_steps and self.train_progress_bar_id is not None:
            return
        super().on_train_epoch_start(trainer, pl_module)
        if self._counts_steps:  # a resumed training begins in the middle
            self._update(self.train_progress_bar_id, trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Done: what comes after it is printed below, not above a bar that is drawn once more behind the report."""
        self._stop_progress()

    def configure_columns(self, trainer: Any) -> list[Any]:
        """As those of every other stage."""
        return bar_columns(get_console().width, self._get_train_description(trainer.current_epoch).rstrip())

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Without the number of the logger's folder, which takes the room of a loss."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _update(self, progress_bar_id: Any, current: int, visible: bool = True, hard: bool = False) -> None:
        if self._counts_steps and progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            current = self.trainer.global_step
            if self.is_timed and self.progress is not None and self.planned_steps:
                self.progress.update(progress_bar_id, total=self.planned_steps)
        super()._update(progress_bar_id, current, visible, hard)

    def _get_train_description(self, current_epoch: int) -> str:
        text = "recovery" if current_epoch == 0 or self._counts_steps else f"recovery, pass {current_epoch + 1} over its text"
        return f"{text:{len(self.validation_description)}}"


def count_steps(trainer: Trainer) -> None:
    """Makes the bar that a Trainer has by itself a :class:`RecoveryBar`, where it would say ``Epoch 0/-2``.

    A bar of somebody's own, one that was left out, and one that counts epochs stay as they are. The object is the same, with its theme,
    its console and whether it is drawn: somebody may hold it, and Lightning goes through the list of callbacks just now.
    """
    bar = trainer.progress_bar_callback
    if type(bar) is RichProgressBar and trainer.max_epochs in (None, -1):
        bar.__class__ = RecoveryBar


def end_bar(trainer: Trainer) -> None:
    """Ends Lightning's bar where the training is over: drawn once more later, it would wipe lines that were printed meanwhile."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar):
        bar._stop_progress()


def leave_out_adverts() -> None:
    """Lightning's lines that recommend packages of its makers, of which a Trainer prints two; all else that it says stays."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_advert not in log.filters:
        log.addFilter(_is_no_advert)


def _is_no_advert(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("\N{ELECTRIC LIGHT BULB} Tip: ")
