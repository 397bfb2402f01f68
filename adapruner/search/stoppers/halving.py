"""Stops what is not in the better half: successive halving (Jamieson and Talwalkar, arXiv 1502.07943)."""

from __future__ import annotations

from typing import Any

from adapruner.search.stoppers import register_stopper


@register_stopper
class Halving:
    """Halves the trials after one chunk, two chunks, four chunks."""

    name = "halving"
    sees_chunks_alone = False

    def make(self, startup: int) -> Any:
        """See :meth:`Stopper.make`."""
        import optuna

        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
