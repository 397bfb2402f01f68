"""``benchmarks/startup.py``: what counts as a missed target, and that the commands it times still answer what it reads."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def startup() -> Any:
    """The script's names."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    return runpy.run_path(str(ROOT / "benchmarks" / "startup.py"))


def judged(startup: Any, torch_seconds: float, seconds: list[float]) -> dict[str, Any]:
    """The row of a command that took so long in each round."""
    commands = {startup["YARDSTICK"]: startup["Command"]([], judged=False), "a command": startup["Command"]([])}
    rounds = [{startup["YARDSTICK"]: torch_seconds + number, "a command": taken} for number, taken in enumerate(seconds)]
    return dict(startup["judge"](rounds, commands)[1])


@pytest.mark.parametrize(
    ("torch_seconds", "seconds", "met"),
    [
        (2.0, [1.4, 9.0], True),  # the least counts: the second round was disturbed
        (2.0, [1.6, 1.6], False),
        (10.0, [4.9, 6.0], True),  # a machine where everything is slow
        (10.0, [5.1, 6.0], False),
        (0.8, [0.7, 0.7], True),
        (0.8, [0.9, 0.9], False),  # within 1.5 s, since the machine is quick: but it imports something like torch
    ],
)
def test_when_a_target_is_missed(startup: Any, torch_seconds: float, seconds: list[float], met: bool) -> None:
    row = judged(startup, torch_seconds, seconds)
    assert row["met"] is met
    assert row["ratio"] == pytest.approx(min(seconds) / torch_seconds)


def test_what_is_only_compared_with_has_no_target(startup: Any) -> None:
    rows = startup["judge"]([{name: 100.0 for name in startup["COMMANDS"]}], startup["COMMANDS"])
    assert [row["command"] for row in rows if "met" not in row] == ["python -c pass", "import torch", "import lightning"]
    assert [row["met"] for row in rows if "met" in row] == [False] * 11  # as long as import torch


def test_a_missed_target_stands_in_the_table(startup: Any) -> None:
    row = judged(startup, 2.0, [1.6])
    record = {"rounds": 1, "cores": 2, "machine": "x", "load": 0.0, "python": "3", "torch": "2", "rows": [row]}
    assert startup["render"](record).splitlines()[-1] == "| `a command` | 1.60 (1.60) | 0.80 | 1.5 s, **missed** |"


def test_every_command_answers_what_is_read(startup: Any) -> None:
    for name, command in startup["COMMANDS"].items():
        if command.judged:
            assert startup["seconds_of"](name, command) > 0


@pytest.mark.parametrize(("answer", "status"), [("another answer", 2), ("pruning.search", 0)])
def test_another_answer_ends_the_program(startup: Any, answer: str, status: int) -> None:
    with pytest.raises(SystemExit, match=r"adapruner fit: expected status . and .* got 2 and:\nadapruner: error: pruning.serach"):
        startup["seconds_of"]("adapruner fit", startup["Command"](["train.py", "fit", "--pruning.serach", "3"], answer, status))


def test_the_page_shows_the_record(startup: Any) -> None:
    record = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))["startup"]
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.split(startup["BEGIN"])[1].split(startup["END"])[0].strip() == startup["render"](record)
    assert [row["command"] for row in record["rows"]] == list(startup["COMMANDS"])
