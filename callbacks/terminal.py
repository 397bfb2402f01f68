"""How a Trainer with our callbacks speaks on the terminal while it is at work: as it is told, and each thing in a line of its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from lightning import Trainer

from adapruner.log_streams import logs_above_bars
from adapruner.progress import without_bars

#: Of Lightning's own code at every step of any training; nobody but its makers can do anything about it.
_LEAF_SPEC = r".*isinstance.treespec, LeafSpec.. is deprecated"


@contextmanager
def on_terminal(trainer: Trainer) -> Iterator[None]:
    """Inside the block lines of the log stand above a bar, Lightning does not warn of its own code, and stages have bars where the Trainer
    has one. Once it is left everything is as it was.

    Args:
        trainer: whose ``enable_progress_bar`` counts for our stages, too.
    """
    with ExitStack() as stack:
        stack.enter_context(logs_above_bars())
        stack.enter_context(_without_warning(_LEAF_SPEC))
        if not draws_bars(trainer):
            stack.enter_context(without_bars())
        yield


def draws_bars(trainer: Trainer) -> bool:
    """Whether the Trainer has a progress bar that is on."""
    bar = trainer.progress_bar_callback
    return bar is not None and not getattr(bar, "is_disabled", False)


@contextmanager
def _without_warning(message: str) -> Iterator[None]:
    """Inside the block warnings of this message are left out. Filters that others add or take away meanwhile stay as they are."""
    before = list(warnings.filters)
    warnings.filterwarnings("ignore", message, FutureWarning)
    added = warnings.filters[0]
    try:
        yield
    finally:
        if added not in before:
            with suppress(ValueError):  # somebody has reset them all
                warnings.filters.remove(added)  # type: ignore[attr-defined]
