"""The study: which recipe next, what it was worth, and going on after a kill.

Lockstep over ranks: rank 0 owns the journal, asks one trial per rank and tells their values; all ranks evaluate at the
same time. The sampler is seeded anew for every trial by the number of trials done, so that a killed and resumed search
asks for exactly the parameters of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from adapruner.errors import AdaPrunerError, ConfigurationError, StudyError
from adapruner.evaluation.perplexity import Windows
from adapruner.pipeline import PruningProblem, Recipe, evaluate_plan, make_plan
from adapruner.pruning.plan import PruningPlan
from adapruner.search.ranks import Ranks
from adapruner.search.space import SearchSpace
from adapruner.search.trials import TrialRecord, best_of, record_of, write_csv

_KILLED = "killed"


@dataclass(frozen=True)
class SearchConfig:
    """How long and how to search."""

    n_trials: int = 128
    """Trials in all, the fixed baselines included; below about 50 the sampler hardly learns."""
    sampler: Literal["tpe", "random"] = "tpe"
    """``tpe``: Bayesian optimisation as in the paper; ``random``: the ablation."""
    seed: int = 0
    """Of the sampler."""
    batch_size: int = 8
    """Windows in one forward pass of a trial."""
    chunks: int = 4
    """Parts of the search split between which a bad trial can stop."""
    early_stopping: bool = True
    """Stop a trial whose NLL after a chunk is above the median of earlier trials (single process only)."""
    max_failures: int = 5
    """Failed trials after which the search stops instead of going on."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """What is searched."""

    def __post_init__(self) -> None:
        for name in ("n_trials", "batch_size", "chunks", "max_failures"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"search.{name}: expected 1 or more, got {getattr(self, name)}; give a positive number")
        if self.sampler not in ("tpe", "random"):
            raise ConfigurationError(f"search.sampler: expected 'tpe' or 'random', got {self.sampler!r}; name one of them")


@dataclass(frozen=True)
class SearchOutcome:
    """The winner and the whole history."""

    plan: PruningPlan
    recipe: Recipe
    best: TrialRecord
    trials: list[TrialRecord]
    best_fixed: tuple[TrialRecord, Recipe] | None
    """The best of the fixed points that were tried first, and its recipe: what a search has to beat."""
    importance: dict[str, float]
    """Search dimension -> share of the objective's variation it explains (PED-ANOVA)."""
    resumed: int
    """How many trials were taken over from the journal."""
    seconds: float


def run_search(
    model: nn.Module,
    problem: PruningProblem,
    windows: Windows,
    config: SearchConfig,
    folder: Path,
    identity: dict[str, Any],
    on_trial: Callable[[TrialRecord, TrialRecord | None], None] | None = None,
) -> SearchOutcome:
    """Runs, or goes on with, the study in ``folder/study.journal`` until it has ``n_trials`` trials.

    Args:
        model: the dense model; whole again after every trial.
        windows: the search split, ``[n, seq_len]``.
        identity: what the trials' values depend on (model, data, space, ...). A journal of another identity is refused.
        on_trial: called with every finished trial and the best so far.

    Raises:
        StudyError: if the journal belongs to another study or is damaged, or if too many trials fail.
    """
    ranks, started = Ranks(), time.monotonic()
    study: _Study | None = None

    def open_study() -> int:
        nonlocal study
        study = _Study(config, problem, folder, identity)
        return study.count()

    resumed = _on_first(ranks, open_study if ranks.rank == 0 else None)
    done = resumed
    while done < config.n_trials:
        count = min(ranks.size, config.n_trials - done)
        asked = _on_first(ranks, study.ask if study else None, done, count)
        value: Any = None
        if ranks.rank < len(asked):
            stop = study.should_stop if study and ranks.size == 1 and config.early_stopping else None
            value = _evaluate(model, problem, windows, config, asked[ranks.rank], stop)
        values = ranks.gather(value)[: len(asked)]
        records, best = _on_first(ranks, study.tell if study else None, values)
        done += len(records)
        if on_trial:
            for record in records:
                on_trial(record, best)
    params, trials, best, importance = _on_first(ranks, study.outcome if study else None)
    recipe = _recipe_of(params, config, problem)
    fixed = best_of([t for t in trials if t.name != "searched"])
    best_fixed = None if fixed is None else (fixed, _recipe_of(fixed.params, config, problem))
    provenance = {"objective": best.value, "trial": best.trial, "seed": problem.seed, **identity}
    plan = make_plan(problem, recipe, provenance)
    return SearchOutcome(plan, recipe, best, trials, best_fixed, importance, resumed, time.monotonic() - started)


def check_journal(folder: Path, identity: dict[str, Any]) -> None:
    """Opens the study in ``folder``, if there is one, so that a journal that cannot be used is refused before heavy work.

    Raises:
        StudyError: if the journal belongs to another study or is damaged.
    """
    if (folder / "study.journal").exists():
        _open_study(folder / "study.journal", json.loads(json.dumps(identity)))


def _on_first(ranks: Ranks, action: Callable[..., Any] | None, *arguments: Any) -> Any:
    """Rank 0 acts, every rank gets the result; an error there is raised everywhere instead of leaving the others waiting."""
    result, error = None, None
    if action is not None:
        try:
            result = action(*arguments)
        except Exception as caught:
            if ranks.size == 1:
                raise
            known = isinstance(caught, AdaPrunerError)
            error = caught if known else StudyError(f"search: expected rank 0 to keep the study, got {type(caught).__name__}: {caught}")
    result, error = ranks.from_first((result, error))
    if error is not None:
        raise error
    return result


def _evaluate(
    model: nn.Module,
    problem: PruningProblem,
    windows: Windows,
    config: SearchConfig,
    asked: dict[str, Any],
    should_stop: Callable[[int, float], bool] | None,
) -> dict[str, Any]:
    """One trial on this rank; a failure is a value, never an exception on one rank only."""
    started = time.monotonic()
    result: dict[str, Any] = {"state": "failed", "value": None, "plan_hash": ""}
    try:
        plan = make_plan(problem, _recipe_of(asked["params"], config, problem))
        result["plan_hash"] = plan.hash
        chunks = evaluate_plan(model, problem.anatomy, plan, windows, batch_size=config.batch_size, chunks=config.chunks)
        for step, part in enumerate(chunks):
            result["value"] = part.nll
            if should_stop and asked["name"] == "searched" and should_stop(step, part.nll):
                chunks.close()  # type: ignore[attr-defined]
                result["state"] = "pruned"
                break
        else:
            result["state"] = "complete" if math.isfinite(result["value"]) else "failed"
    except (AdaPrunerError, ValueError, ArithmeticError, RuntimeError) as error:  # out of memory is a RuntimeError
        result["error"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return {**result, "seconds": time.monotonic() - started}


def _recipe_of(params: dict[str, Any], config: SearchConfig, problem: PruningProblem) -> Recipe:
    import optuna

    return config.space.suggest(optuna.trial.FixedTrial(params), problem.calibration.sources.names)


class _Study:
    """Rank 0's side: the journal, the sampler, the fixed points."""

    def __init__(self, config: SearchConfig, problem: PruningProblem, folder: Path, identity: dict[str, Any]) -> None:
        import optuna

        self.config, self.problem, self.folder = config, problem, folder
        self.fixed = config.space.fixed_points(problem.calibration.sources.names)
        self.pending: list[Any] = []
        self.pruner = optuna.pruners.MedianPruner(n_startup_trials=max(8, len(self.fixed)), n_min_trials=4)
        folder.mkdir(parents=True, exist_ok=True)
        self.study = _open_study(folder / "study.journal", json.loads(json.dumps(identity)))
        self.study.pruner = self.pruner
        self._fail_killed()

    def _fail_killed(self) -> None:
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            self.study._storage.set_trial_user_attr(trial._trial_id, _KILLED, True)
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def done(self) -> list[Any]:
        """Finished trials in order, those of a killed process left out."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished() and _KILLED not in t.user_attrs]

    def count(self) -> int:
        """Number of finished trials."""
        return len(self.done())

    def ask(self, done: int, count: int) -> list[dict[str, Any]]:
        self.pending = []
        asked = []
        for index in range(done, done + count):
            name = "searched"
            self.study.sampler = self._sampler(index)
            if index < len(self.fixed):
                name, point = self.fixed[index]
                self.study.enqueue_trial(point)
            trial = self.study.ask()
            self.config.space.suggest(trial, self.problem.calibration.sources.names)
            trial.set_user_attr("name", name)
            self.pending.append(trial)
            asked.append({"name": name, "params": dict(trial.params)})
        return asked

    def _sampler(self, index: int) -> Any:
        import optuna

        seed = self.config.seed * 100003 + index
        if self.config.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=max(10, len(self.fixed)), constant_liar=True)

    def should_stop(self, step: int, value: float) -> bool:
        self.pending[0].report(value, step)
        return step < self.config.chunks - 1 and bool(self.pending[0].should_prune())

    def tell(self, values: list[dict[str, Any]]) -> tuple[list[TrialRecord], TrialRecord | None]:
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        for trial, result in zip(self.pending, values, strict=True):
            for key in ("seconds", "plan_hash", "error"):
                if key in result:
                    trial.set_user_attr(key, result[key])
            state = states[result["state"]]
            self.study.tell(trial, result["value"] if state == TrialState.COMPLETE else None, state=state)
        done = self.done()
        failed = [t for t in done if t.state == TrialState.FAIL]
        if len(failed) >= self.config.max_failures:
            raise StudyError(
                f"search: expected fewer than {self.config.max_failures} failed trials, got {len(failed)}, the last with "
                f"{failed[-1].user_attrs.get('error')!r}; mend that and start again, finished trials are kept"
            )
        records = [record_of(i, t) for i, t in enumerate(done)]
        write_csv(records, self.folder)
        return records[-len(values) :], best_of(records)

    def outcome(self) -> tuple[dict[str, Any], list[TrialRecord], TrialRecord, dict[str, float]]:
        records = [record_of(i, t) for i, t in enumerate(self.done())]
        best = best_of(records)
        if best is None:
            raise StudyError("search: expected one finished trial, got none; see the errors in trials.csv")
        write_csv(records, self.folder)
        return best.params, records, best, self._importance()

    def _importance(self) -> dict[str, float]:
        import optuna

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that few trials say little: the report shows how many there were
                importance = optuna.importance.get_param_importances(self.study)
        except (ValueError, RuntimeError):  # too few trials, or no variation
            return {}
        return {name: float(value) for name, value in importance.items() if math.isfinite(value)}


def _open_study(journal: Path, identity: dict[str, Any]) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _drop_torn_line(journal)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(study_name="adapruner", storage=storage, direction="minimize", load_if_exists=True)
    except Exception as error:  # the journal is read here; whatever it holds, the user gets one line
        raise StudyError(
            f"search: expected a sound journal in {journal}, got damage ({type(error).__name__}); move it away to search anew"
        ) from error
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", identity)
    elif known != identity:
        different = sorted(k for k in {*known, *identity} if known.get(k) != identity.get(k))
        raise StudyError(
            f"search: expected the study in {journal} to have the same {different[0]} ({known.get(different[0])}), got "
            f"{identity.get(different[0])}; choose another run folder, or move the journal away to search anew"
        )
    return study


def _drop_torn_line(journal: Path) -> None:
    """A killed writer can leave half a line, on which the next write would break: cut back to the last whole one."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
