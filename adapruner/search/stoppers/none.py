"""Stops no trial."""

from __future__ import annotations

from typing import Any

from adapruner.search.stoppers import register_stopper


@register_stopper
class Never:
    """Every trial sees the whole search split."""

    name = "none"
    sees_chunks_alone = False

    def make(self, startup: int) -> Any:
        """See :meth:`Stopper.make`."""
        import optuna

        return optuna.pruners.NopPruner()
