"""Perplexities that an earlier attempt at the same run had measured already: a kill costs one compared method, not all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from torch import nn

from adapruner.errors import BudgetError
from adapruner.files.value_cache import ValueCache
from adapruner.pruning.problem import make_plan
from adapruner.recovery.judged_refit import JudgedRefit
from adapruner.recovery.post_pruning import PostPruning, measure_stages
from adapruner.search.find_plan import FoundPlan
from adapruner.search.score import ScoredModel

_REFIT = "loss of the refit"
FILE = "report_measurements.json"
Values = dict[tuple[str, int], float]


class MeasuredBefore:
    """Method and stage -> perplexity by data set and window; remembers nothing without a file.

    Args:
        known: the values of earlier attempts; ``None`` remembers nothing.
        sets: data sets and windows that must all be known.
    """

    def __init__(self, known: ValueCache | None = None, sets: list[tuple[str, int]] | None = None) -> None:
        self._known, self._sets = known, list(sets or [])

    @classmethod
    def of(cls, scored: ScoredModel, found: FoundPlan, **depends: Any) -> MeasuredBefore:
        """What earlier attempts left in the run folder; nothing without a folder, or where it is not known which data they had.

        Args:
            depends: what the values depend on besides model, data and plan, as JSON types.
        """
        if scored.folder is None or scored.data.fingerprint is None:
            return cls()
        identity = {**scored.identity, "all data": scored.data.fingerprint, "plan": found.plan.hash, **depends}
        return cls(ValueCache(scored.folder / FILE, identity, shared=False), list(scored.data.evaluation_windows))

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

    def judged(self, now: JudgedRefit | None) -> JudgedRefit | None:
        """What this attempt's refit came to, else an earlier one's."""
        if self._known is None:
            return now
        if now is None:
            before, after = (self._known.get(_REFIT, name) for name in ("pruned", "refitted"))
            return None if before is None or after is None else JudgedRefit(before, after)
        for name, value in asdict(now).items():
            self._known.put(_REFIT, name, value, write=True)
        return now

    def compare(
        self, model: nn.Module, problem: Any, recipes: dict[str, Any], post_pruning: PostPruning, measure: Callable[[nn.Module], Values]
    ) -> Iterator[tuple[str, str, Values]]:
        """(Method, stage, values) of every recipe through the same stages as they are measured; what earlier attempts measured is recalled.

        The dense model comes back whole after each. A method that cannot meet the budget (uniform widths are coarse on small models) is
        yielded once with stage ``skipped`` and no values: it must not end a run whose search is done.
        """
        for name, recipe in recipes.items():
            known = [(stage, self.recall(name, stage)) for stage in post_pruning.stages]
            if all(values is not None for _, values in known):
                yield from ((name, stage, values or {}) for stage, values in known)
                continue
            try:
                plan = make_plan(problem, recipe)
            except BudgetError:
                yield name, "skipped", {}
                continue
            for stage, values in measure_stages(model, problem, plan, post_pruning, measure):
                self.keep(name, stage, values)
                yield name, stage, values
