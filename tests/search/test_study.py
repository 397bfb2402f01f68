from __future__ import annotations

import copy
import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.data.windows import TextWindows
from adapruner.errors import BudgetError, ConfigurationError, StudyError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.pruning.fixed_recipe import fixed_recipe_of
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import pruned
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchConfig, SearchOutcome, check_journal, fixed_recipe, run_search
from adapruner.search.trial_value import Objective, Part
from adapruner.search.trials import TrialRecord, best_of, to_history

METRICS = ["l1", "l2", "gate_fisher"]
CONFIG = SearchConfig(n_trials=16, batch_size=8, chunks=2, space=SearchSpace(metrics=METRICS))
FIXED = 8  # three metrics, then one of them on each of three sources, then the other two on the best of these
IDENTITY = {"model": "f00d", "search data": "beef", "bounds": (1, 2)}


@pytest.fixture(scope="module")
def whole(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path_factory: pytest.TempPathFactory) -> SearchOutcome:
    """The search that nothing interrupts."""
    return run_search(model, problem, windows, CONFIG, tmp_path_factory.mktemp("whole"), IDENTITY)


def same(first: SearchOutcome, second: SearchOutcome) -> None:
    assert [t.params for t in first.trials] == [t.params for t in second.trials]
    assert [t.value for t in first.trials] == pytest.approx([t.value for t in second.trials])
    assert [(t.trial, t.name, t.state, t.plan_hash) for t in first.trials] == [
        (t.trial, t.name, t.state, t.plan_hash) for t in second.trials
    ]
    assert first.plan.hash == second.plan.hash
    assert first.recipe == second.recipe


class Killed(BaseException):
    """As a signal would: nothing catches it."""


def test_the_winner_is_not_worse_than_any_baseline(model: Any, problem: PruningProblem, windows: TextWindows, whole: SearchOutcome) -> None:
    assert len(whole.trials) == CONFIG.n_trials
    for metric in METRICS:
        plan = make_plan(problem, Recipe({metric: 1.0}))
        with pruned(model, problem.structure, plan):
            value = evaluate_nll(model, windows).nll
        record = next(t for t in whole.trials if t.name == metric)
        assert (record.value, record.plan_hash) == (pytest.approx(value), plan.hash)
        assert whole.best.value is not None
        assert whole.best.value <= value + 1e-9
    with pruned(model, problem.structure, whole.plan):
        assert evaluate_nll(model, windows).nll == pytest.approx(whole.best.value)
    assert whole.plan.hash == whole.best.plan_hash
    assert whole.plan.provenance["trial"] == whole.best.trial
    assert min(t.value for t in whole.trials if t.value is not None and t.state == "complete") == whole.best.value


def test_a_plan_that_is_a_fixed_recipe_knows_it(whole: SearchOutcome) -> None:
    assert whole.best.name in METRICS  # of weights drawn at random nothing is better
    assert fixed_recipe_of(whole.plan.provenance) == whole.best.name
    searched = next(t for t in whole.trials if t.name == "searched" and t.plan_hash not in {f.plan_hash for f in whole.trials[:FIXED]})
    assert fixed_recipe(searched, whole.trials) is None
    twin = replace(searched, plan_hash=whole.trials[1].plan_hash)  # the sampler came to the very units of a fixed recipe
    assert fixed_recipe(twin, whole.trials) == whole.trials[1].name
    assert fixed_recipe(replace(searched, plan_hash=""), [replace(whole.trials[0], plan_hash="")]) is None  # of an earlier release


def test_the_model_comes_back_whole(model: Any, problem: PruningProblem, whole: SearchOutcome) -> None:
    for group in problem.structure.groups:
        assert model.get_submodule(group.output.module).weight.shape[1] == group.channels
    assert whole.plan.pruned_fraction == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize(
    ("trials", "said"), [(12, "8 of 12 trials are plain recipes, so the sampler gets 4; give pruning.search.n_trials 16 or more"), (16, "")]
)
def test_a_search_that_cannot_search_says_so(
    model: Any, problem: PruningProblem, windows: TextWindows, capsys: pytest.CaptureFixture[str], trials: int, said: str
) -> None:
    run_search(model, problem, windows, replace(CONFIG, n_trials=trials, random_sets=0), None, IDENTITY)
    text = " ".join(capsys.readouterr().out.split())
    assert said in text if said else "plain recipes" not in text


def test_what_mattered_is_not_said_after_a_handful_of_trials(
    model: Any, problem: PruningProblem, windows: TextWindows, whole: SearchOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole.importance == {}
    monkeypatch.setattr("adapruner.search.optuna_study.FEW", 1)
    outcome = run_search(model, problem, windows, replace(CONFIG, random_sets=0), None, IDENTITY)
    assert sum(outcome.importance.values()) == pytest.approx(1.0, abs=0.01)


def test_seed_trials_are_never_stopped_early(whole: SearchOutcome) -> None:
    states = [t.state for t in whole.trials]
    assert states[:FIXED] == ["complete"] * FIXED
    assert "pruned" in states[FIXED:]
    assert [t.name for t in whole.trials[FIXED:]] == ["searched"] * (CONFIG.n_trials - FIXED)
    assert [t.name for t in whole.trials[:FIXED]][:3] == METRICS


@pytest.mark.parametrize("kept", [2, 9, 13])
def test_killed_between_trials_and_resumed(
    model: Any, problem: PruningProblem, windows: TextWindows, whole: SearchOutcome, tmp_path: Path, kept: int
) -> None:
    def kill(record: TrialRecord, best: TrialRecord | None) -> None:
        if record.trial == kept - 1:
            raise Killed("killed")

    with pytest.raises(Killed, match=r"^killed$"):
        run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY, kill)
    if kept == 9:  # and the kill tore the last write
        with (tmp_path / "study.journal").open("a") as journal:
            journal.write('{"op_code": 4, "worker_id": "x')
    seen: list[int] = []
    outcome = run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY, lambda record, best: seen.append(record.trial))
    assert outcome.resumed == kept
    assert seen == list(range(kept, CONFIG.n_trials))
    same(outcome, whole)


@pytest.mark.parametrize("at", [1, 11])
def test_killed_inside_a_trial_and_resumed(
    model: Any,
    problem: PruningProblem,
    windows: TextWindows,
    whole: SearchOutcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    """The trial stays RUNNING in the journal; it is asked again, and counted once."""
    evaluate, calls = Objective.of_plan, iter(range(100))

    def dying(*arguments: Any, **options: Any) -> Iterator[Part]:
        if next(calls) < at:
            yield from evaluate(*arguments, **options)
            return
        if at < FIXED:  # a later trial might be stopped by its first chunk
            yield next(iter(evaluate(*arguments, **options)))
        raise Killed("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "of_plan", dying)
        with pytest.raises(Killed, match=r"^killed$"):
            run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY)
    outcome = run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY)
    assert outcome.resumed == at
    same(outcome, whole)


def test_a_longer_search_goes_on_and_a_finished_one_only_answers(
    model: Any, problem: PruningProblem, windows: TextWindows, whole: SearchOutcome, tmp_path: Path
) -> None:
    short = run_search(model, problem, windows, replace(CONFIG, n_trials=8), tmp_path, IDENTITY)
    assert [t.params for t in short.trials] == [t.params for t in whole.trials[:8]]
    same(run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY), whole)
    again = run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY, lambda *_: pytest.fail("nothing was left to try"))
    assert again.resumed == CONFIG.n_trials
    same(again, whole)


def test_a_study_of_something_else_is_refused(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    short = replace(CONFIG, n_trials=1)
    run_search(model, problem, windows, short, tmp_path, IDENTITY)
    with pytest.raises(StudyError, match=r"to have the same search data \(beef\), got cafe; choose another run folder"):
        run_search(model, problem, windows, short, tmp_path, {**IDENTITY, "search data": "cafe"})


@pytest.mark.parametrize("line", [0, 3])
def test_a_damaged_journal_is_one_line(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path, line: int) -> None:
    short = replace(CONFIG, n_trials=2)
    run_search(model, problem, windows, short, tmp_path, IDENTITY)
    journal = tmp_path / "study.journal"
    lines = journal.read_text().splitlines()
    lines[line] = "{not json"
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(StudyError, match=r"expected a sound journal in .*study.journal, got damage .*; move it away") as caught:
        run_search(model, problem, windows, short, tmp_path, IDENTITY)
    assert "\n" not in str(caught.value)


def test_trials_csv_holds_every_trial(model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path) -> None:
    outcome = run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY)
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert list(rows[0])[:6] == ["trial", "name", "state", "value", "seconds", "plan_hash"]
    assert list(rows[0])[6:] == sorted(outcome.best.params)
    for row, record in zip(rows, outcome.trials, strict=True):
        assert (row["trial"], row["name"], row["state"], row["plan_hash"]) == (
            str(record.trial),
            record.name,
            record.state,
            record.plan_hash,
        )
        assert float(row["value"]) == record.value
        assert float(row["gamma"]) == record.params["gamma"]
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_failed_trial_is_counted_and_too_many_stop_the_search(
    model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = Objective.of_plan, iter(range(1000))

    def failing(*arguments: Any, **options: Any) -> Iterator[Part]:
        if next(calls) in (1, 3):
            raise (RuntimeError("out of room\nsecond line") if not (tmp_path / "budget").exists() else BudgetError("no plan"))
        yield from evaluate(*arguments, **options)

    monkeypatch.setattr(Objective, "of_plan", failing)
    config = replace(CONFIG, n_trials=8, max_failures=3)
    outcome = run_search(model, problem, windows, config, tmp_path / "few", IDENTITY)
    assert [t.state == "failed" for t in outcome.trials] == [False, True, False, True, False, False, False, False]
    assert outcome.trials[1].value is None
    calls = iter([1, 1, 3, 0])
    with pytest.raises(StudyError, match=r"expected fewer than 3 failed trials, got 3, the last with 'out of room'; mend that"):
        run_search(model, problem, windows, config, tmp_path / "many", IDENTITY)
    (tmp_path / "budget").touch()
    calls = iter([1, 1, 3, 0])
    with pytest.raises(StudyError, match=r"got 3, the last with 'no plan'"):
        run_search(model, problem, windows, config, tmp_path / "budgets", IDENTITY)


def test_a_value_that_is_not_finite_is_a_failure(
    model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "of_plan", lambda *_, **__: iter([Part(math.nan, math.nan)]))
    with pytest.raises(StudyError, match="expected one finished trial, got none"):
        run_search(model, problem, windows, replace(CONFIG, n_trials=2), tmp_path, IDENTITY)


def test_random_sampling_is_another_search_from_the_same_points(
    model: Any, problem: PruningProblem, windows: TextWindows, whole: SearchOutcome, tmp_path: Path
) -> None:
    config = replace(CONFIG, sampler="random", seed=1)
    first, second = (run_search(model, problem, windows, config, tmp_path / name, IDENTITY) for name in ("a", "b"))
    same(first, second)
    assert [t.params for t in first.trials[:FIXED]] == [t.params for t in whole.trials[:FIXED]]
    assert [t.params for t in first.trials[FIXED:]] != [t.params for t in whole.trials[FIXED:]]


def test_the_callers_random_numbers_do_not_decide(
    model: Any, problem: PruningProblem, windows: TextWindows, whole: SearchOutcome, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    outcome = run_search(model, problem, windows, CONFIG, tmp_path, IDENTITY)
    assert outcome.plan.hash == whole.plan.hash
    same(outcome, whole)


def test_history_and_best_so_far(whole: SearchOutcome) -> None:
    assert best_of(whole.trials) == whole.best
    assert best_of([replace(whole.trials[0], state="failed", value=None)]) is None
    rows = to_history(whole.trials)
    assert len(rows) == len(whole.trials)
    assert set(rows[0]) == {"trial", "name", "state", "value", "seconds", "plan_hash", "cost"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "search.n_trials: expected 1 or more, got 0"),
        ({"chunks": 0}, "search.chunks: expected 1 or more, got 0"),
        ({"batch_size": -1}, "search.batch_size: expected 1 or more, got -1"),
        ({"max_failures": 0}, "search.max_failures: expected 1 or more, got 0"),
        ({"sampler": "grid"}, "search.sampler: expected a known sampler, got 'grid'"),
        ({"early_stopping": "mediane"}, "search.early_stopping: expected a known early_stopping, got 'mediane'; did you mean 'median'"),
        ({"order": "data"}, "search.order: expected a known order, got 'data'; Known: data_first"),
        ({"random_sets": -1}, "search.random_sets: expected 0 or more, got -1"),
    ],
)
def test_a_search_that_cannot_be_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SearchConfig(**options)


def test_machines_that_share_a_storage_work_on_one_study(
    model: Any, problem: PruningProblem, windows: TextWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    config = SearchConfig(n_trials=8, batch_size=8, space=SearchSpace(metrics=["l2", "gate_fisher"]), storage=storage, random_sets=0)
    evaluate, calls, other = Objective.of_plan, iter(range(100)), []

    def in_between(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:  # a second machine comes and does the rest, while the first is in its third trial
            other.append(run_search(copy.deepcopy(model), problem, windows, config, tmp_path / "second", {"model": "x"}))
        return evaluate(*arguments, **options)

    monkeypatch.setattr(Objective, "of_plan", in_between)
    first = run_search(model, problem, windows, config, tmp_path / "first", {"model": "x"})
    assert other[0].resumed == 2
    assert len(other[0].trials) == 8
    assert len(first.trials) == 9  # the one that was running is not lost
    assert all(t.state != "failed" for t in first.trials)
    assert len({str(sorted(t.params.items())) for t in first.trials}) == 9
    assert not list(tmp_path.rglob("study.journal"))
    with pytest.raises(StudyError, match=r"search: expected the study in sqlite:.*study.db to have the same model \(x\), got y"):
        run_search(model, problem, windows, config, tmp_path / "third", {"model": "y"})


@pytest.mark.parametrize("url", ["study.db", "grpc://host", "grpc:host:1"])
def test_a_storage_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"search.storage: expected a URL such as sqlite:///study.db .*, got '"):
        SearchConfig(storage=url)


def test_a_storage_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/missing/study.db"
    expected = r"search.storage: expected a storage at sqlite:.*, got .*; correct the URL, or start it"
    with pytest.raises(StudyError, match=expected) as caught:
        check_journal(tmp_path, {}, url)
    assert "\n" not in str(caught.value)
