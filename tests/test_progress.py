"""Lines, bars and the log; the clock is the test's own."""

from __future__ import annotations

import errno
import io
import logging
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adapruner import progress
from adapruner.errors import written_as
from adapruner.progress import LOG, RUN_LOG, announce, late_progress_bar, logged_to, plain_lines, progress_bar, shown, without_bars


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time now, which a test moves on."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines_of(advance: Callable[..., None], clock: list[float], steps: list[tuple[int, float]], note: str = "") -> None:
    """Advances to each number of ``steps``, so many seconds after the one before."""
    for done, seconds in steps:
        clock[0] += seconds
        advance(done, note)


def test_a_line_at_every_tenth_with_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("statistics", 20) as advance:
        lines_of(advance, clock, [(n, 10.0) for n in range(1, 21)], "best")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "statistics: 1 of 20, after 0:00:10, best"  # nothing is known of the pace yet
    assert said[1] == "statistics: 2 of 20, after 0:00:20, 0:03:00 left, best"
    assert said[-2] == "statistics: 18 of 20, after 0:03:00, 0:00:20 left, best"
    assert said[-1] == "statistics: 20 of 20, after 0:03:20, best"
    assert len(said) == 11


def test_a_stage_of_a_blink_is_two_lines_at_most(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("statistics", 100) as advance:
        lines_of(advance, clock, [(n, 0.001) for n in range(1, 101)])
    assert capsys.readouterr().out == "statistics: 1 of 100\nstatistics: 100 of 100\n"


def test_a_slow_stage_says_something_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("recovery", 10_000) as advance:
        lines_of(advance, clock, [(n, 7.0) for n in range(1, 101)])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 + 99 * 7 // 35
    assert said[1] == "recovery: 6 of 10000, after 0:00:42, 19:25:58 left"


def test_a_stage_that_is_resumed_counts_its_pace_from_there(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("search", 100) as advance:
        lines_of(advance, clock, [(81, 0.0), (82, 10.0), (91, 90.0)])
    assert capsys.readouterr().out.splitlines()[-1] == "search: 91 of 100, after 0:01:40, 0:01:30 left"


def test_a_total_that_nobody_knows(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines_of(plain_lines("recovery", None), clock, [(n, 20.0) for n in range(1, 8)], "loss 3.200")
    assert capsys.readouterr().out.splitlines() == [
        "recovery: 1, after 0:00:20, loss 3.200",
        "recovery: 3, after 0:01:00, loss 3.200",
        "recovery: 5, after 0:01:40, loss 3.200",
        "recovery: 7, after 0:02:20, loss 3.200",
    ]


def test_what_is_at_work_is_said_every_half_minute_without_a_bar(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("comparison", 2) as advance:
        for number in range(70):
            clock[0] += 1.0
            advance.below([f"l2: search, {number}", "flap: refit"])
        clock[0] += 60.0
        advance.below([])
    assert capsys.readouterr().out.splitlines() == ["l2: search, 29", "flap: refit", "l2: search, 59", "flap: refit"]


class Terminal(io.StringIO):
    """A terminal that keeps what it is told."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_and_the_log_has_the_lines(
    clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = screen_of(monkeypatch)
    with logged_to(tmp_path / RUN_LOG):
        with progress_bar("statistics", 2) as advance:
            lines_of(advance, clock, [(1, 1.0), (2, 1.0)])
        lines_of(plain_lines("recovery", 2), clock, [(1, 1.0), (2, 1.0)])
    assert "━" in terminal.getvalue()
    assert "statistics: 1 of 2" not in terminal.getvalue()
    assert "recovery" not in terminal.getvalue()  # somebody else draws its bar
    said = [line.split(" ", 2)[2] for line in (tmp_path / RUN_LOG).read_text().splitlines()]
    assert said == [f"{stage}: {n} of 2, after 0:00:0{n}" for stage in ("statistics", "recovery") for n in (1, 2)]


def test_what_is_at_work_stands_below_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen_of(monkeypatch, 60)
    with progress_bar("comparison", 2) as advance:
        advance(1)
        advance.below(["l2, 20.0 %, seed 0: search", "x" * 200])
    last = terminal.getvalue().split("comparison")[-1]
    assert "l2, 20.0 %, seed 0: search" in last
    assert "x" * 59 + "…" in last


def drawn(terminal: Terminal) -> list[str]:
    """Every line that was drawn, without colours."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())) if line.strip()]


def screen_of(monkeypatch: pytest.MonkeyPatch, width: int = 80) -> Terminal:
    """A terminal, in the place of the output."""
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    return terminal


@pytest.mark.parametrize(
    ("width", "shown"),
    [(80, "best 6.4856, trial 13…"), (100, "best 6.4856, trial 13, searched…"), (120, "best 6.4856, trial 13, searched, in nats/token")],
)
def test_a_narrow_terminal_shortens_the_note_at_a_word_and_no_number(width: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch, width)
    with progress_bar("search", 1024) as advance:
        advance(517, "best 6.4856, trial 13, searched, in nats/token")
    said = drawn(screen)[-1]
    found = re.match(r"search +[━╸╺]{15,} +517/1024 0:00 +(best.*)$", said)
    assert found is not None, said
    assert found[1] == shown
    assert len(said) <= width


def test_a_note_of_one_long_word_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with progress_bar("search", 10) as advance:
        advance(1, "x" * 200)
    assert drawn(screen)[-1].endswith(" xxxxxxxxxxxxxxxxxxxxxx…")


def test_numbers_of_all_stages_stand_below_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    for title in ("search", "best few again", "perplexity, reconstructed"):
        with progress_bar(title, 64) as advance:
            advance(64, "a note")
    last = {line.split("━")[0].strip(): line for line in drawn(screen)}
    assert {line.index("64/64") for line in last.values()} == {35}
    assert {line.index("a note") for line in last.values()} == {57}


def test_a_stage_within_a_stage_has_its_bar_below_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with progress_bar("comparison", 2) as around:
        with progress_bar("layers in sequence", 4) as within:
            within(1)
            assert [line.split(" ━")[0].strip() for line in drawn(screen)[-2:]] == ["comparison", "layers in sequence"]
        around(2, "l2: pruned")
    assert [line.split(" ━")[0].strip() for line in drawn(screen)[-2:]] != ["comparison", "layers in sequence"]
    assert "layers" not in drawn(screen)[-1]


def test_where_there_is_nothing_to_do_no_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with progress_bar("comparison", 0):
        pass
    assert screen.getvalue() == ""


def test_what_is_said_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with progress_bar("search", 8) as advance:
        advance(1)
        announce("a line of its own")
        advance(8)
    before, _, after = screen.getvalue().partition("adapruner: a line of its own")
    assert before.endswith("\r\x1b[2K")  # the bar is wiped off before, and drawn again in the next line
    assert after.startswith("\n")
    assert drawn(screen)[-1].startswith("search ")


def test_without_bars_there_are_lines_on_a_terminal_too(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with without_bars():
        with without_bars():  # by two callbacks of one Trainer
            pass
        with progress_bar("search", 2) as advance:
            lines_of(advance, clock, [(1, 1.0), (2, 1.0)])
        lines_of(plain_lines("recovery", 1), clock, [(1, 1.0)])
    assert drawn(screen) == ["search: 1 of 2, after 0:00:01", "search: 2 of 2, after 0:00:02", "recovery: 1 of 1, after 0:00:01"]
    with progress_bar("refit", 1) as advance:
        advance(1)
    assert "━" in drawn(screen)[-1]


def test_a_bar_that_follows_another_ends_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with ExitStack() as searching, late_progress_bar("best few again", searching.close) as later:
        searching.enter_context(progress_bar("search", 2))(2, "best")
        later(1, 8, "searched")
        later(8, 8, "searched")
    titles = [line.split(" ━")[0].strip() for line in drawn(screen)]
    assert titles == sorted(titles, reverse=True)  # search, and then no search again
    assert set(titles) == {"search", "best few again"}


def test_a_long_line_ends_at_words_on_a_terminal_and_is_one_line_in_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = screen_of(monkeypatch)
    message = "loads the export in a fresh process and compares logits and perplexity; a/file/that/has/a/long/name"
    announce(message)
    first, second = drawn(screen)
    assert f"{first} {second}" == f"adapruner: {message}"
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    announce(message)
    assert file.getvalue() == f"adapruner: {message}\n"


def test_the_log_is_appended_with_the_time_also_when_nothing_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / RUN_LOG
    file.write_text("an earlier attempt\n")
    with shown(False), logged_to(file):
        announce("a line \x1b[2J")
    announce("after it")
    assert capsys.readouterr().out == "adapruner: after it\n"
    earlier, line = file.read_text().splitlines()
    assert earlier == "an earlier attempt"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} a line \\x1b\[2J", line)


def test_python_s_own_logging_is_as_it_was(tmp_path: Path) -> None:
    before = LOG.level, LOG.propagate, list(LOG.handlers)

    def fails() -> None:
        with logged_to(tmp_path / RUN_LOG):
            assert not LOG.propagate
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fails()
    assert (LOG.level, LOG.propagate, LOG.handlers) == before


def test_whoever_asks_for_the_log_gets_what_is_said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, "adapruner"):
        announce("a line")
    assert caplog.messages == ["a line"]


def test_a_folder_in_the_place_of_the_log_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / RUN_LOG).mkdir()
    with logged_to(tmp_path / RUN_LOG):
        announce("a line")
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"adapruner: keeps no log: {tmp_path / RUN_LOG} cannot be written (Is a directory)"
    assert second == "adapruner: a line"


def test_a_disk_that_is_full_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with logged_to(tmp_path / RUN_LOG):
        (handler,) = LOG.handlers
        monkeypatch.setattr(handler, "flush", full)
        announce("a line")
    assert capsys.readouterr() == ("adapruner: a line\n", "")


def test_what_is_said_calls_options_as_they_were_written(capsys: pytest.CaptureFixture[str]) -> None:
    with written_as({"search.n_trials": "search"}):
        announce("give pruning.search.n_trials 26 or more")
    assert capsys.readouterr().out == "adapruner: give search 26 or more\n"
