"""Seed trials: plain recipes as points of the search's own space, enqueued before the sampler's, so that it never ends below them.

Every metric alone over the whole pool; the space's leading metric on each source alone; then, on the source that did best, every
other metric. Each is one global ranking of score per parameter. The best of them is what a search has to beat.
"""

from __future__ import annotations

from typing import Any

from adapruner.calibration.pool import CalibrationPool
from adapruner.search.space import SearchSpace
from adapruner.search.trials import TrialRecord, best_of

_LEADING = ("taylor_second", "taylor_vectorize", "wanda_sp")


class SeedTrials:
    """The points in order; those of the last part are known once the others have a value."""

    def __init__(self, space: SearchSpace, pool: CalibrationPool) -> None:
        self.space, self.pool = space, pool
        self.lead = next((m for m in _LEADING if m in space.metrics), space.metrics[0])
        self.first: list[tuple[str, dict[str, Any]]] = [(m, space.point(pool, m)) for m in space.metrics]
        self.sources = pool.sources.names if space.searches_sources(pool) else ()
        self.first += [(f"{self.lead} on {s}", space.point(pool, self.lead, s)) for s in self.sources]
        self.others = [m for m in space.metrics if m != self.lead] if self.sources else []

    def __len__(self) -> int:
        return len(self.first) + len(self.others)

    def limit(self, done: int, count: int) -> int:
        """How many of the next ``count`` trials may be asked for, with ``done`` finished: after ``first``, its values must be known."""
        return min(count, len(self.first) - done) if done < len(self.first) else count

    def at(self, index: int, finished: list[TrialRecord]) -> tuple[str, dict[str, Any]] | None:
        """Name and point of trial ``index``; ``None`` for the sampler's."""
        if index < len(self.first):
            return self.first[index]
        if index >= len(self):
            return None
        best = best_of([r for r in finished[: len(self.first)] if " on " in r.name])
        source = best.name.rpartition(" on ")[2] if best else self.sources[0]
        metric = self.others[index - len(self.first)]
        return f"{metric} on {source}", self.space.point(self.pool, metric, source)
