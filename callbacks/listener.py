"""What callbacks of one Trainer tell each other while a model is pruned: one base class, whose methods do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lightning import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from adapruner.callbacks.pruning_search import PruningSearchCallback

Kind = TypeVar("Kind")


class PruningListener(Callback):
    """A callback that follows the pruning of the model. Override what you need; every method does nothing by default.

    In the order in which :class:`adapruner.callbacks.PruningSearchCallback` and
    :class:`adapruner.callbacks.LoRARecoveryCallback` call them, all in ``setup("fit")`` but the last:

    >>> class PrintStages(PruningListener):
    ...     def on_pruning_stage(self, trainer, pl_module, stage, pruning):
    ...         print(stage, sum(p.numel() for p in pl_module.parameters()))
    """

    compared_metrics: Sequence[str] = ()
    """Importance metrics that this callback will score the units by: their statistics are collected too."""

    def sequence_lengths(self) -> dict[str, int]:
        """Option -> tokens of the sequences that this callback runs through the model: they must fit the model's positions."""
        return {}

    def check_before_search(self, trainer: Trainer) -> None:
        """Refuses, before the model is loaded and anything is scored, what could not work after the search."""

    def check_with_model(self, pl_module: LightningModule, model: Any) -> None:
        """Refuses, before anything is scored, what the loaded model cannot do."""

    def on_search_accepted(self, trainer: Trainer) -> None:
        """Nothing is left to refuse and the run folder is this run's: what is to be there of a killed run may be written."""

    def on_pruning_stage(self, trainer: Trainer, pl_module: LightningModule, stage: str, pruning: PruningSearchCallback) -> None:
        """The model is at a stage: ``dense``, with the plan known and nothing removed yet, then ``pruned`` or ``reconstructed``."""

    def knows_stage(self, trainer: Trainer, stage: str) -> bool:
        """Whether the model need not be brought to this stage for this callback, since an earlier attempt has seen it there."""
        return True

    def report_sections(self, trainer: Trainer) -> dict[str, Any]:
        """What this callback adds to the run's report, by the report's keys; see :mod:`adapruner.report.schema`."""
        return {}

    def before_merge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recovery is over; its adapters are about to be merged into the weights."""


def listeners_of(trainer: Trainer) -> list[PruningListener]:
    """The Trainer's callbacks that follow the pruning, in their order."""
    every: Any = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in every if isinstance(callback, PruningListener)]


def first_of(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    """The first of the Trainer's callbacks of one class, or ``None``."""
    every: Any = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in every if isinstance(callback, kind)), None)
