from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from adapruner.compare import progress
from adapruner.compare.cell_state import last_line, state_line
from adapruner.compare.cells import Cell, claim, lay_out
from adapruner.compare.progress import Display, Outcome
from adapruner.progress import LOG, RUN_LOG, logged_to
from adapruner.stage_times import keep_times, stage

from .fakes import fake_spec


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """Begun, and nothing more."""
    found = lay_out(fake_spec(tmp_path))[0]
    claim(found, ["fit"])
    return found


def test_the_stage_that_a_run_is_in_and_what_it_said_last(cell: Cell) -> None:
    began = time.time() - 100.0
    assert state_line(cell, began) == "adapruner, 20.0 %, seed 0: loading, 1 min 40 s in all"
    with logged_to(cell.folder / RUN_LOG), keep_times(cell.folder, began=began), stage("search"):
        LOG.info("search: 7 of 32, 0:02:06 left")
        assert state_line(cell, began) == ("adapruner, 20.0 %, seed 0: search for 0.0 s, 1 min 40 s in all; search: 7 of 32, 0:02:06 left")
        with stage("refit"):
            assert ": refit for" in state_line(cell, began)
        assert ": search for" in state_line(cell, began)
    assert state_line(cell, began) == "adapruner, 20.0 %, seed 0: report, 1 min 40 s in all"


def test_what_an_earlier_attempt_left_does_not_count(cell: Cell) -> None:
    with logged_to(cell.folder / RUN_LOG), keep_times(cell.folder, began=time.time() - 50.0), stage("search"):
        LOG.info("search: 7 of 32")
    os.utime(cell.folder / RUN_LOG, (time.time() - 40.0,) * 2)
    assert last_line(cell, time.time() - 10.0) == ""
    assert "loading, 10.0 s in all" in state_line(cell, time.time() - 10.0)


def test_cells_at_work_are_told_once_a_second_until_they_end(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    class Advance:
        def __call__(self, done: int, note: str = "") -> None:
            pass

        def below(self, said: list[str]) -> None:
            told.append(said)

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = Display(Advance(), 2, 0)  # type: ignore[arg-type]
    display.begun(cell)
    for _ in range(12):
        display.at_work()
        now[0] += 0.25
    assert len(told) == 3
    assert told[0][0].startswith("adapruner, 20.0 %, seed 0: loading")
    display.ended(Outcome(cell, 3.0))
    display.at_work()
    assert told[-1] == []
