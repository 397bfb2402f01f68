"""Perplexities that an earlier attempt at the same run had measured already: a kill costs one compared method, not all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning import Trainer
from torch import nn

from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.files.value_cache import ValueCache
from adapruner.recovery.post_pruning import PostPruning
from adapruner.report.comparison import compare_methods

FILE = "report_measurements.json"
Values = dict[tuple[str, int], float]


class ReportMemory:
    """Method and stage -> perplexity by data set and window; remembers nothing without a file.

    Args:
        sets: data sets and windows that must all be known.
    """

    def __init__(self, known: ValueCache | None = None, sets: list[tuple[str, int]] | None = None) -> None:
        self._known, self._sets = known, list(sets or [])

    @classmethod
    def of_run(cls, trainer: Trainer, pruning: PruningSearchCallback, depends_on: dict[str, Any]) -> ReportMemory:
        """In the run's folder, where something says what the whole run depends on: the command line, by the settings of checkpoints.

        On the first rank alone, which alone measures for the report.

        Args:
            depends_on: what the values depend on beside the run's settings, its data and its plan; JSON types.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        settings = next((c.settings for c in callbacks if isinstance(c, RecoveryCheckpointCallback)), {})
        data: Any = getattr(trainer, "datamodule", None)
        fingerprint = getattr(data, "fingerprint", None)
        if not settings or not fingerprint or pruning.plan is None:
            return cls()
        identity = {**pruning.identity, "settings": settings, "all data": fingerprint, "plan": pruning.plan.hash, **depends_on}
        return cls(ValueCache(pruning.folder / FILE, identity, shared=False), list(data.evaluation_windows))

    def recall(self, method: str, stage: str) -> Values | None:
        """What was measured, if it was on all sets."""
        if self._known is None:
            return None
        found = {(name, window): self._known.get(f"{method}/{stage}", f"{name}/{window}") for name, window in self._sets}
        known = {of: value for of, value in found.items() if value is not None}
        return known if len(known) == len(found) else None

    def keep(self, method: str, stage: str, values: Values) -> None:
        """For the next attempt; on the first rank alone."""
        if self._known is not None:
            for (name, window), value in values.items():
                self._known.put(f"{method}/{stage}", f"{name}/{window}", value, write=True)

    def measure(self, method: str, stage: str, measure: Callable[[], Values]) -> Values:
        """What is known, else what ``measure`` gives."""
        known = self.recall(method, stage)
        if known is not None:
            return known
        values = measure()
        self.keep(method, stage, values)
        return values

    def compare(
        self, model: nn.Module, problem: Any, recipes: dict[str, Any], post_pruning: PostPruning, measure: Callable[[nn.Module], Values]
    ) -> Iterator[tuple[str, str, Values]]:
        """:func:`compare_methods`, but a method that an earlier attempt took through all stages is recalled."""
        stages = (
            ["pruned"] + ["reconstructed"] * (post_pruning.reconstruction is not None) + ["recovered"] * (post_pruning.recover is not None)
        )
        for name, recipe in recipes.items():
            known = [(stage, self.recall(name, stage)) for stage in stages]
            if all(values is not None for _, values in known):
                yield from ((name, stage, values or {}) for stage, values in known)
                continue
            for method, stage, values in compare_methods(model, problem, {name: recipe}, post_pruning, measure):
                self.keep(method, stage, values)
                yield method, stage, values
