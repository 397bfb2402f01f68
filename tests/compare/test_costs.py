from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from adapruner.compare.cells import lay_out
from adapruner.compare.costs import cost_table
from adapruner.compare.plots import write_plots
from adapruner.compare.summary import CostRow, read_cell
from adapruner.compare.tables import Result, to_csv, to_markdown
from adapruner.report.formats import MISSING
from adapruner.report.schema import validate_report
from tests.report.pages import Page

from .fakes import fake_report, fake_spec


def costs(method: str, seed: int, **changes: Any) -> CostRow:
    took = {"seconds": 100.0 + 20 * seed, "stages": {"search": 60.0 + 20 * seed, "between stages": 0.01}, "peak_gib": 2.0, "trials": 48}
    return CostRow(method, 0.5, seed, 10, 20, None, None, **{**took, "recovery_tokens": 10_000, **changes})


def result(*rows: CostRow, **changes: Any) -> Result:
    return Result(("a", "b"), (0.5,), (0, 1, 2), (), (), costs=rows, **changes)


def test_means_over_seeds_of_time_memory_trials_and_tokens() -> None:
    fixed = [costs("b", seed, trials=0, stages={"refit": 4.0}, recovery_tokens=None) for seed in (0, 1, 2)]
    lines = to_markdown(result(*(costs("a", seed) for seed in (0, 1, 2)), *fixed)).splitlines()
    assert lines[0] == "## What the runs took"
    assert lines[2] == "| removed | method | time | memory | trials | trained tokens |"
    # 100, 120, 140 s: mean 2 min, deviation 20 s
    assert lines[4] == "| 50.0 % | a | 2 min 0 s ± 20.0 s | 2.00 GiB | 48 | 10.0 k |"
    assert lines[5] == f"| 50.0 % | b | 2 min 0 s ± 20.0 s | 2.00 GiB | 0 | {MISSING} |"
    stages = lines.index("## What the runs took, by stage")
    assert lines[stages + 2] == "| removed | method | search | refit |"  # what every run did in a blink has no column
    assert lines[stages + 4] == f"| 50.0 % | a | 1 min 20 s | {MISSING} |"
    assert lines[stages + 5] == f"| 50.0 % | b | {MISSING} | 4.0 s |"
    assert "Means over seeds ± sample standard deviation" in lines[7]
    assert "at a time" not in lines[7]
    assert "2 cells ran at a time and shared the machine" in to_markdown(result(costs("a", 0), jobs=2))


def test_runs_that_do_not_say_what_they_took_have_no_table() -> None:
    assert cost_table(result(costs("a", 0, seconds=None))) is None
    half = cost_table(result(costs("a", 0), costs("a", 1, seconds=None)))
    assert half is not None
    assert half.rows[0][2].text == MISSING  # a mean over fewer seeds would not stand for both


def test_a_cell_s_record_says_what_its_run_took(tmp_path: Path) -> None:
    cell = lay_out(fake_spec(tmp_path))[0]
    report = fake_report(cell, 40.0)
    report["took"] = {
        "seconds": 90.0,
        "peak_gib": 3.0,
        "device_peak_gib": 7.5,
        "processes": 2,
        "stages": {"search": 80.0, "zero-shot tasks": 9.0},
    }
    report["recovery"]["lora"]["tokens"] = 4_096
    rows, cost = read_cell(cell, validate_report(report))
    assert (cost.seconds, cost.peak_gib, cost.device_peak_gib, cost.trials, cost.recovery_tokens) == (90.0, 3.0, 7.5, 48, 4_096)
    read = list(csv.DictReader(io.StringIO(to_csv(rows, [cost]))))
    assert len(read) == 3
    assert {row["seconds"] for row in read} == {"90.0"}
    assert (read[0]["seconds_search"], read[0]["seconds_zero_shot_tasks"], read[0]["trials"]) == ("80.0", "9.0", "48")
    report["search"], report["recovery"], report["took"] = None, None, None
    _, cost = read_cell(cell, validate_report(report))
    assert (cost.seconds, cost.trials, cost.recovery_tokens) == (None, 0, 0)
    empty = next(csv.DictReader(io.StringIO(to_csv(rows, [cost]))))
    assert (empty["seconds"], empty["trials"]) == ("", "0")


def test_the_page_has_the_table(tmp_path: Path) -> None:
    write_plots(result(costs("a", 0)), tmp_path)
    page = Page((tmp_path / "comparison.html").read_text())
    assert page.headings == ["What the runs took", "What the runs took, by stage", "Protocol"]
    assert "1 min 40 s" in page.text


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_of_it_is_in_the_json(jobs: int) -> None:
    from adapruner.compare.tables import to_json

    assert "seconds" not in to_json(result(costs("a", 0), jobs=jobs))
