"""Stages of a run by the clock; the clock is the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapruner import stage_times
from adapruner.progress import RUN_LOG, logged_to
from adapruner.stage_times import FILE, OTHER, keep_times, read_times, running_times, seconds_by_stage, stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time now, which a test moves on."""
    now = [5000.0]
    monkeypatch.setattr(stage_times.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stage_times.time, "time", lambda: now[0])
    return now


def test_an_inner_stage_stops_the_outer_one_s_clock_and_all_add_up(clock: list[float]) -> None:
    with keep_times(None, began=4990.0) as times:
        clock[0] += 1.0
        with stage("search"):
            clock[0] += 5.0
            with stage("refit"):
                clock[0] += 2.0
            clock[0] += 3.0
        with stage("search"):
            clock[0] += 4.0
    assert seconds_by_stage(times.processes()) == {"loading": 10.0, "search": 12.0, "refit": 2.0, OTHER: 1.0}
    assert times.summary()["seconds"] == 25.0


def test_a_resumed_run_counts_the_process_that_was_killed_until_its_last_line(clock: list[float], tmp_path: Path) -> None:
    killed = keep_times(tmp_path, "a")
    killed.__enter__()
    search = stage("search")
    search.__enter__()
    assert json.loads((tmp_path / FILE).read_text())["processes"][0]["stage"] == "search"
    (tmp_path / RUN_LOG).write_text("search: 3 of 8\n")
    os.utime(tmp_path / RUN_LOG, (5030.0, 5030.0))  # 30 seconds into the search
    clock[0] = 9000.0
    with logged_to(tmp_path / RUN_LOG), keep_times(tmp_path, "a") as times, stage("search"):
        clock[0] += 7.0
    assert times.summary()["processes"] == 2
    assert seconds_by_stage(times.processes()) == {"search": 37.0, OTHER: 0.0}
    assert "search 37.0 s" in (tmp_path / RUN_LOG).read_text()
    with keep_times(tmp_path, "a") as third:
        clock[0] += 1.0
    assert third.summary()["processes"] == 3
    assert third.summary()["seconds"] == 38.0  # the one that ended by itself counts once, whatever was said after it


def test_another_run_s_times_and_damaged_ones_are_forgotten(clock: list[float], tmp_path: Path) -> None:
    with keep_times(tmp_path, "a"), stage("search"):
        clock[0] += 7.0
    with keep_times(tmp_path, "b") as other:
        pass
    assert other.earlier == []
    assert [process.stages for process in read_times(tmp_path)] == [{}]
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace('"seconds": 0.0', '"seconds": 99.0'))
    assert read_times(tmp_path) == []


def test_a_function_as_a_stage_and_an_error_in_it(clock: list[float]) -> None:
    @stage("search")
    def fails() -> None:
        clock[0] += 2.0
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fails()  # no run is timed
    with keep_times(None) as times:
        with pytest.raises(KeyError, match="x"):
            fails()
        clock[0] += 1.0
        assert running_times() is times
    assert seconds_by_stage(times.processes()) == {"search": 2.0, OTHER: 1.0}
    assert running_times() is None


def test_what_ends_late_writes_into_no_folder_of_others(clock: list[float], tmp_path: Path) -> None:
    with keep_times(tmp_path):
        late = stage("recovery")
        late.__enter__()
        clock[0] += 2.0
    (tmp_path / FILE).unlink()
    late.__exit__(None, None, None)
    assert not (tmp_path / FILE).exists()


def test_times_that_cannot_be_written_end_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with keep_times(tmp_path) as times, stage("search"):
        pass
    assert "search" in times.own.stages
    assert (tmp_path / FILE).is_dir()


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with keep_times(folder):
        (folder / FILE).unlink(missing_ok=True)
        folder.rmdir()
        with stage("search"):
            pass
    assert not folder.exists()
