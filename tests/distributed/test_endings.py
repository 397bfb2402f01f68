"""Two processes end a training at the same step, whatever each of them measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import run

pytestmark = pytest.mark.slow  # two processes are started


def on_both(folder: Path, **options: Any) -> list[dict[str, Any]]:
    run(["-m", "tests.distributed.endings", str(folder), json.dumps(options)], folder / "log.txt", 240, ranks=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_the_first_rank_s_clock_counts_for_both(tmp_path: Path) -> None:
    first, second = on_both(tmp_path, time_budget="8s")
    assert first == second
    assert (first["steps"], first["ended_by"]) == (8, "time budget")
    assert first["rates"] == pytest.approx([1e-2 * (1 - step / 8) for step in range(8)])
