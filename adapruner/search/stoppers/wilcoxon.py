"""Stops what is worse than the best trial by a signed-rank test."""

from __future__ import annotations

from typing import Any

from adapruner.search.stoppers import register_stopper


@register_stopper
class Wilcoxon:
    """Pairs the values of single chunks with the best trial's."""

    name = "wilcoxon"
    sees_chunks_alone = True

    def make(self, startup: int) -> Any:
        """See :meth:`Stopper.make`."""
        import optuna

        return optuna.pruners.WilcoxonPruner(p_threshold=0.1)
