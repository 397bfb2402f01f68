"""Rank 0's side of a search: asks Optuna for the next trials and tells it their values.

The sampler is seeded anew for every trial by the number of trials done, so that a killed and resumed search asks for exactly the
parameters of an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import socket
import warnings
from pathlib import Path
from typing import Any

from adapruner.errors import StudyError
from adapruner.progress import announce
from adapruner.pruning.fixed_recipe import SEARCHED
from adapruner.pruning.problem import PruningProblem
from adapruner.search.config import SearchConfig
from adapruner.search.journal import KILLED, OWNER, SEAL, fail_killed, open_study, seal_of
from adapruner.search.samplers import make_sampler
from adapruner.search.seed_trials import SeedTrials
from adapruner.search.space import frozen_dimensions
from adapruner.search.stoppers import STOPPERS, make_stopper
from adapruner.search.trials import TrialRecord, best_of, record_of, write_csv

#: Trials of the sampler below which nothing is said about what mattered.
FEW = 10


class OptunaStudy:
    """The journal, the seed trials and the sampler of one search."""

    def __init__(self, config: SearchConfig, problem: PruningProblem, folder: Path | None, identity: dict[str, Any]) -> None:
        self.config, self.problem, self.folder = config, problem, folder
        self.seeds = SeedTrials(config.space, problem.calibration)
        self.objectives = 2 if config.objective.pareto else 1
        self.pending: list[Any] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.study = open_study(folder, identity, self.objectives, config.storage)
        self.study.pruner = make_stopper(config.early_stopping, startup=max(8, len(self.seeds)))
        #: Who runs the trials of this process, where machines share the study.
        self.owner = "" if config.storage is None else f"{socket.gethostname()}:{os.getpid() if folder is None else folder.resolve()}"
        fail_killed(self.study, self.owner)

    def done(self) -> list[Any]:
        """Finished trials in order, those of a killed process left out."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished() and KILLED not in t.user_attrs]

    def records(self) -> list[TrialRecord]:
        """The same as records."""
        return [record_of(i, t) for i, t in enumerate(self.done())]

    def ask(self, done: int, count: int) -> list[dict[str, Any]]:
        """Name and parameters of the next trials; fewer than ``count`` where the next seed trial waits for a value."""
        finished, asked = self.records(), []
        if self.owner:  # others' trials are running
            done = sum(KILLED not in t.user_attrs for t in self.study.get_trials(deepcopy=False))
        self.pending = []
        for index in range(done, done + self.seeds.limit(done, count)):
            seed, startup = (self.config.seed * 100003 + index) % 2**32, max(10, len(self.seeds))
            self.study.sampler = make_sampler(self.config.sampler, seed, startup, self.objectives, self._frozen(index, finished))
            name, point = self.seeds.at(index, finished) or (SEARCHED, None)
            if point is not None:
                self.study.enqueue_trial(point)
            trial = self.study.ask()
            self.config.space.suggest(trial, self.problem.calibration)
            trial.set_user_attr("name", name)
            if self.owner:
                trial.set_user_attr(OWNER, self.owner)
            self.pending.append(trial)
            asked.append({"name": name, "params": dict(trial.params)})
        return asked

    def warn_of_few_trials(self) -> None:
        """Says where fewer than half of the trials are the sampler's: then it is the plain recipes that decide."""
        seeds, trials = len(self.seeds), self.config.n_trials
        if trials < 2 * seeds:
            announce(
                f"search: {min(seeds, trials)} of {trials} trials are plain recipes, so the sampler gets {max(0, trials - seeds)}; "
                f"give pruning.search.n_trials {2 * seeds} or more for a search"
            )

    def _frozen(self, index: int, finished: list[TrialRecord]) -> dict[str, Any] | None:
        """One subspace after the other: the half that waits, or is done, stays at the best point before this half."""
        left = self.config.n_trials - len(self.seeds)
        if self.config.order == "joint" or index < len(self.seeds):
            return None
        first_half = index - len(self.seeds) < left // 2
        before = len(self.seeds) if first_half else len(self.seeds) + left // 2
        best = best_of(finished[:before])
        return None if best is None else frozen_dimensions(self.config.order, first_half, best.params)

    def should_stop(self, step: int, value: float, alone: float) -> bool:
        """Whether the one trial that is running is bad enough to stop after chunk ``step``.

        Args:
            value: over all chunks so far.
            alone: over this chunk.
        """
        if self.objectives > 1:  # Optuna stops trials by one value alone
            return False
        self.pending[0].report(alone if STOPPERS.find(self.config.early_stopping).sees_chunks_alone else value, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few pairs say little to a rank test
            return step < self.config.chunks - 1 and bool(self.pending[0].should_prune())

    def tell(self, values: list[dict[str, Any]]) -> tuple[list[TrialRecord], TrialRecord | None, int]:
        """Records of the trials that were asked for, the best of all, and how many are finished.

        Raises:
            StudyError: if too many trials failed.
        """
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        for trial, result in zip(self.pending, values, strict=True):
            for key in ("seconds", "plan_hash", "error"):
                if key in result:
                    trial.set_user_attr(key, result[key])
            if result["value"] is not None and math.isfinite(result["value"]):
                trial.set_user_attr("value", result["value"])  # of a stopped trial Optuna keeps none
            state = states[result["state"]]
            told = [result["value"], *([result["cost"]] if self.objectives > 1 else [])] if state == TrialState.COMPLETE else None
            trial.set_user_attr(SEAL, seal_of(state.name, trial.params, told, result["plan_hash"]))
            self.study.tell(trial, told, state=state)
        done = self.done()
        failed = [t for t in done if t.state == TrialState.FAIL]
        if len(failed) >= self.config.max_failures:
            raise StudyError(
                f"search: expected fewer than {self.config.max_failures} failed trials, got {len(failed)}, the last with "
                f"{failed[-1].user_attrs.get('error')!r}; mend that and start again, finished trials are kept"
            )
        records, own = self.records(), {t.number for t in self.pending}
        if self.folder is not None:
            write_csv(records, self.folder)
        return [r for r, t in zip(records, done, strict=True) if t.number in own], best_of(records), len(done)

    def outcome(self) -> tuple[list[TrialRecord], dict[str, float]]:
        """All trials, and how much of the objective's variation each dimension explains (PED-ANOVA)."""
        import optuna

        records = self.records()
        if self.folder is not None:
            write_csv(records, self.folder)
        target = (lambda t: t.values[0]) if self.objectives > 1 else None
        if sum(r.name == SEARCHED and r.state == "complete" for r in records) < FEW:
            return records, {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that few trials say little: the report shows how many there were
                importance = optuna.importance.get_param_importances(self.study, target=target)
        except (ValueError, RuntimeError):  # too few trials, or no variation
            importance = {}
        return records, {name: float(value) for name, value in importance.items() if math.isfinite(value)}
