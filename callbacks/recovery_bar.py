"""The Trainer's progress bar, with what is done in the place of a number of epochs that nobody chose."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class RecoveryBar(RichProgressBar):
    """Lightning's own, which says ``Epoch 0/-2`` where steps are counted and not epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = "recovery" if current_epoch == 0 else f"recovery, pass {current_epoch + 1} over its text"
        return f"{text:{len(self.validation_description)}}"
