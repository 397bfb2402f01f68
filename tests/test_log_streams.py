"""Lines of the log beside a bar."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from adapruner.log_streams import logs_above_bars
from adapruner.progress import progress_bar
from tests.test_progress import Terminal, screen_of


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A library's own, which writes on the error stream that there was when it was imported."""
    found = logging.getLogger("somebody.s.library")
    found.propagate = False
    yield found
    found.handlers.clear()
    found.propagate = True


def test_a_line_of_a_library_s_log_stands_above_the_bar(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    monkeypatch.setattr(sys, "stderr", screen)
    log.addHandler(handler := logging.StreamHandler(screen))
    with progress_bar("search", 2) as advance:
        advance(1)
        log.warning("stopped: max_steps reached")
    before, _, after = screen.getvalue().partition("stopped: max_steps reached")
    assert before.endswith("\r\x1b[2K")  # the bar is wiped off before
    assert after.startswith("\n")
    assert handler.stream is screen


def test_a_log_in_a_file_stays_there(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    screen_of(monkeypatch)
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    log.addHandler(handler := logging.StreamHandler(file))
    with logs_above_bars():
        assert handler.stream is file


def test_a_handler_that_somebody_redirects_meanwhile_stays_redirected(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    log.addHandler(handler := logging.StreamHandler(screen))
    with logs_above_bars():
        handler.setStream(theirs := Terminal())
    assert handler.stream is theirs
