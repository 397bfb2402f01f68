"""What callbacks of one Trainer tell each other while a model is pruned: one base class, whose methods do nothing."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning import Callback, LightningModule, Trainer

from adapruner.errors import ConfigurationError

if TYPE_CHECKING:
    from adapruner.callbacks.pruning_search import PruningSearchCallback

Kind = TypeVar("Kind")
#: Of two callbacks the first comes first.
_ORDER = (("PruningSearchCallback", "LoRARecoveryCallback"), ("LoRARecoveryCallback", "PrunedExportCallback"))


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

    def on_scored(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The statistics are collected; the model is dense, and nothing is decided yet."""

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


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Two searches would prune twice, two recoveries train adapters of adapters; the order decides what each of them sees.

    Raises:
        ConfigurationError: if one of this package's callbacks stands twice in the list, stands before one that it has to follow, or
            two of them name different models.
    """
    own = [(next((k for k in type(c).__mro__ if k.__module__.startswith("adapruner.callbacks.")), None), c) for c in callbacks]
    names = [kind.__name__ for kind, _ in own if kind is not None and kind is not PruningListener]
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigurationError(
                f"trainer.callbacks: expected one {name}, got {times}; leave the others out (the command line adds its own)"
            )
    for first, second in _ORDER:
        if first in names and second in names[: names.index(first)]:
            raise ConfigurationError(f"trainer.callbacks: expected {second} after {first}, got it before; move it behind")
    search, recovery = (next((c for kind, c in own if kind is not None and kind.__name__ == name), None) for name in _ORDER[0])
    if search is not None and recovery is not None and search.model_attribute != recovery.model_attribute:
        raise ConfigurationError(
            f"recovery.model_attribute: expected {search.model_attribute!r}, as the search has it, got {recovery.model_attribute!r}; "
            "name the attribute that holds the language model in both"
        )


def requested_checkpoint(trainer: Trainer) -> str | None:
    """The local checkpoint that ``fit(ckpt_path=...)`` resumes from, or ``None``.

    Its weights come after ``setup`` and fit only a model that was pruned by its plan. Lightning 2.6 keeps the path, with ``best`` and
    ``last`` resolved, in an argument of ``Trainer._run`` alone until then.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_run" and frame.f_locals.get("self") is trainer:
            found = frame.f_locals.get("ckpt_path")
            return str(found) if found is not None and Path(found).exists() else None
        frame = frame.f_back
    return None
