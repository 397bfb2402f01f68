"""Stops what is worse than the median of earlier trials."""

from __future__ import annotations

from typing import Any

from adapruner.search.stoppers import register_stopper


@register_stopper
class Median:
    """Compares the value so far with that of earlier trials after as many chunks."""

    name = "median"
    sees_chunks_alone = False

    def make(self, startup: int) -> Any:
        """See :meth:`Stopper.make`."""
        import optuna

        return optuna.pruners.MedianPruner(n_startup_trials=startup, n_min_trials=4)
