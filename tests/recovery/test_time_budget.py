"""A training of so much time: what a duration is, how many steps fit, when it is over. The clock is made up."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.recovery import training, training_state
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.time_budget import TimeBudget, seconds_of
from adapruner.recovery.training import RecoveryConfig, recovery_config, train_recovery
from adapruner.report.schema import validate_report
from tests.report.sample import sample_report
from tests.tiny import random_windows, tiny_llama

WINDOWS = random_windows(8, 12, seed=7)


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("45m", 2700), ("1h30m", 5400), ("1h 30m", 5400), ("1.5h", 5400), ("2d", 172_800), ("90s", 90), ("90", 90), (90, 90), (0.5, 0.5)],
)
def test_durations(duration: Any, seconds: float) -> None:
    assert seconds_of(duration) == seconds


@pytest.mark.parametrize("duration", ["", "soon", "30m1h", "45x", "-5m", "0m", 0, -1, float("nan"), float("inf"), "1:30"])
def test_what_is_no_duration_is_refused(duration: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"recovery\.time_budget: expected a duration above 0 such as 45m .*; give 45m"):
        RecoveryConfig(time_budget=duration)


def test_a_slow_first_step_says_nothing_of_the_others() -> None:
    budget = TimeBudget(100.0)
    assert not budget.is_over
    budget.after_step(1, 40.0)
    assert budget.planned_steps is None
    assert budget.share == 0.4
    for step in range(2, 6):
        budget.after_step(step, 38.0 + 2.0 * step)
    assert budget.seconds_a_step == 2.0
    assert budget.planned_steps == 31  # 48 seconds are gone after five
    assert budget.is_measured


def test_it_is_over_where_another_step_would_end_farther_away() -> None:
    for last, over in ((9.4, False), (9.6, True)):
        budget = TimeBudget(10.0)
        budget.after_step(1, last - 1.0)
        budget.after_step(2, last)
        assert budget.is_over is over


def test_steps_are_an_upper_bound_of_plan_and_share() -> None:
    budget = TimeBudget(100.0, most_steps=10)
    for step in range(1, 6):
        budget.after_step(step, float(step))
    assert budget.planned_steps == 10
    assert budget.share == 0.5


class Clock:
    """A second passes with every step that is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pace: float = 1.0) -> None:
        self.now, inner = 0.0, training._step

        def step(*arguments: Any) -> float:
            self.now += pace
            return inner(*arguments)

        monkeypatch.setattr(training, "_step", step)
        monkeypatch.setattr(training_state, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def config(**options: Any) -> RecoveryConfig:
    return RecoveryConfig(lora=LoRAConfig(r=2, alpha=4, dropout=0.0), batch_size=2, learning_rate=1e-2, **options)


def test_a_recovery_makes_the_steps_that_fit_and_is_that_of_so_many_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    timed = train_recovery(tiny_llama(), WINDOWS, config(time_budget="7s"))
    counted = train_recovery(tiny_llama(), WINDOWS, config(steps=7))
    assert len(timed.history) == 7
    assert (timed.seconds, timed.ended_by, counted.ended_by) == (7.0, "time budget", "steps")
    for name, value in counted.model.state_dict().items():
        assert torch.equal(timed.model.state_dict()[name], value), name
    said = capsys.readouterr().out
    assert "recovery: at 1 s a step 7.0 s of training hold about 7 steps" in said
    assert "recovery: 7 steps in 7.0 s, ended by its time budget" in said


def test_the_number_of_steps_stays_a_bound(clock: Clock) -> None:
    found = train_recovery(tiny_llama(), WINDOWS, config(time_budget="1h", steps=3))
    assert len(found.history) == 3
    assert found.ended_by == "steps"


def test_a_killed_one_counts_what_it_used_and_a_finished_one_does_nothing(clock: Clock, tmp_path: Path, monkeypatch: Any) -> None:
    options: dict[str, Any] = {"time_budget": 9.3, "every_n_steps": 2}  # nine steps of a second are nearer than ten
    inner = training._step

    def killed(adapted: Any, batch: Any, state: Any, *rest: Any) -> float:
        if state.step == 4:
            raise KeyboardInterrupt("here")
        return inner(adapted, batch, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", killed)
        with pytest.raises(KeyboardInterrupt, match="here"):
            train_recovery(tiny_llama(), WINDOWS, config(**options), folder=tmp_path)
    clock.now += 1000.0  # until it is called again
    resumed = train_recovery(tiny_llama(), WINDOWS, config(**options), folder=tmp_path)
    assert [step for step, _ in resumed.history] == list(range(1, 10))
    assert resumed.seconds == 9.0
    again = train_recovery(tiny_llama(), WINDOWS, config(**options), folder=tmp_path)
    assert (len(again.history), again.ended_by) == (9, "time budget")
    longer = train_recovery(tiny_llama(), WINDOWS, config(**{**options, "time_budget": 12}), folder=tmp_path)
    assert len(longer.history) == 12


def test_the_report_says_it(clock: Clock) -> None:
    section = train_recovery(tiny_llama(), WINDOWS, config(time_budget=3)).to_report()
    record = copy.deepcopy(sample_report())
    record["recovery"]["lora"] = section
    lora = validate_report(record).recovery.lora  # type: ignore[union-attr]
    assert lora is not None
    assert (lora.time_budget, lora.ended_by, lora.steps) == (3.0, "time budget", 3)


def test_a_text_is_a_time_and_a_number_is_steps() -> None:
    assert recovery_config("45m") == RecoveryConfig(time_budget="45m")
    with pytest.raises(ConfigurationError, match=r"recovery: expected a number of steps, or a time with a unit such as 45m, got '200'"):
        recovery_config("200")
    with pytest.raises(ConfigurationError, match=r"recovery: expected a number of steps, or a time with a unit such as 45m, got '1\.5'"):
        recovery_config("1.5")
    assert RecoveryConfig().most_steps == 100
    assert RecoveryConfig(time_budget=5, steps=7).most_steps == 7
