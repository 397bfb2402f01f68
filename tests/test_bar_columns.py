"""What a bar says of time and of work without an end."""

from __future__ import annotations

import math

import pytest
from rich.progress import Progress

from adapruner.bar_columns import Done, Times, clock_text


def test_the_time_left_and_in_the_end_only_what_was_spent() -> None:
    now, said = [0.0], Times()
    bars = Progress(get_time=lambda: now[0], disable=True)
    bars.add_task("search", total=300)
    for done in (30, 60, 90):
        now[0] += 10.0
        bars.update(bars.tasks[0].id, completed=done)
    assert str(said.render(bars.tasks[0])) == "0:30, 1:10 left"
    now[0] += 5400.0
    bars.update(bars.tasks[0].id, completed=300)
    now[0] += 50.0  # the next stage runs
    assert str(said.render(bars.tasks[0])) == "1:30:30        "


def test_nobody_knows_how_many() -> None:
    bars = Progress(disable=True)
    bars.add_task("recovery", total=None, completed=7)
    bars.add_task("recovery", total=math.inf, completed=7)
    assert [str(Done().render(task)) for task in bars.tasks] == ["        7"] * 2


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (59.7, "1:00"), (600, "10:00"), (3600, "1:00:00"), (90000, "1 day, 1:00:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
