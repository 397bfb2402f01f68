from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from adapruner.compare.cells import lay_out
from adapruner.compare.command import collect
from adapruner.compare.plots import write_plots
from adapruner.compare.schedule import run_cells
from adapruner.compare.summary import Paired, Row, Spread, make_sections, summarise
from adapruner.compare.tables import Result, print_tables, section_table, to_csv, to_json, to_markdown, write_tables
from adapruner.report.answer import provenance_lines
from adapruner.report.formats import MISSING
from adapruner.report.schema import validate_report
from tests.report.pages import Page, rows_of
from tests.report.sample import sample_report

from .fakes import Silent, Starter, fake_spec


def row(method: str, seed: int, value: float | None, stage: str = "pruned", budget: float = 0.5, dataset: str = "text") -> Row:
    return Row(method, budget, seed, stage, dataset, 128, value, 100, "plan")


def result_of(tmp_path: Path, fails: dict[str, int] | None = None, **changes: object) -> Result:
    spec = fake_spec(tmp_path, ["adapruner", "l2", "random"], **changes)
    cells = lay_out(spec)
    return collect(spec, cells, run_cells(cells, Starter(fails), Silent(), pause=0))


def test_mean_and_sample_deviation() -> None:
    assert summarise([40.0, 44.0, 42.0]) == Spread(42.0, 2.0, 3)  # ((-2)^2 + 2^2 + 0) / 2 = 4
    assert summarise([60.0, 58.0, 65.0]) == Spread(61.0, pytest.approx(math.sqrt(13.0)), 3)  # (1 + 9 + 16) / 2
    assert summarise([7.0]) == Spread(7.0, None, 1)
    assert summarise([7.0, None]) == Spread(math.inf, None, 2)


def test_the_difference_is_paired_by_seed() -> None:
    rows = [row("a", s, v) for s, v in ((0, 40.0), (1, 44.0), (2, 42.0))] + [row("b", s, v) for s, v in ((0, 60.0), (1, 58.0), (2, 65.0))]
    (section,) = make_sections(rows, ["a", "b"], [0.5])
    first, second = section.lines
    assert first.paired is None
    # 20, 14, 23: mean 19, deviations 1, -5, 4, variance 42 / 2 = 21. Unpaired it would be sqrt(4 + 13).
    assert second.paired == Paired(19.0, pytest.approx(math.sqrt(21.0)), 3, lower=0, by_seed={0: 20.0, 1: 14.0, 2: 23.0})
    assert section.best(0.5, "pruned") == 42.0


def test_differences_are_taken_to_the_method_that_is_named_at_every_stage() -> None:
    rows = [row("a", s, v) for s, v in ((0, 40.0), (1, 44.0), (2, None))] + [row("b", s, v) for s, v in ((0, 41.0), (1, 42.0), (2, 50.0))]
    rows += [row("a", 0, 30.0, "recovered"), row("b", 0, 32.0, "recovered")]
    (section,) = make_sections(rows, ["a", "b"], [0.5], against="b")
    first, second = section.lines
    assert second.differences == {}
    assert first.differences["pruned"].by_seed == {0: -1.0, 1: 2.0, 2: None}
    assert first.differences["pruned"].lower == 1
    assert first.paired == Paired(-2.0, None, 1, lower=1, by_seed={0: -2.0})
    result = Result(("a", "b"), (0.5,), (0, 1, 2), tuple(rows), (section,), other="b")
    assert "| against b | lower |" in to_markdown(result)
    assert "the difference to b is taken seed by seed" in to_markdown(result)
    record = json.loads(to_json(result), parse_constant=lambda name: pytest.fail(name))
    assert record["against"] == "b"
    pruned = record["summary"][0]["lines"][0]["differences"]["pruned"]
    assert pruned == {"mean": None, "deviation": None, "seeds": 3, "lower": 1, "by_seed": {"0": -1.0, "1": 2.0, "2": None}}


def test_the_difference_is_at_the_last_stage_and_over_shared_seeds() -> None:
    rows = [row("a", 0, 40.0), row("a", 0, 35.0, "recovered"), row("a", 1, 41.0), row("a", 1, 36.0, "recovered")]
    rows += [row("b", 1, 50.0), row("b", 1, 38.0, "recovered"), row("b", 2, 90.0), row("b", 2, 80.0, "recovered")]
    rows += [row("c", 0, 60.0), row("d", 3, 1.0)]
    (section,) = make_sections(rows, ["a", "b", "c", "d", "e"], [0.5])
    differences = [line.paired and (line.paired.mean, line.paired.seeds) for line in section.lines]
    assert differences == [None, (2.0, 1), (20.0, 1), None, None]
    assert section.stages == ("pruned", "recovered")
    assert section.lines[4].stages == {}


def test_the_best_is_among_those_with_the_most_seeds() -> None:
    rows = [row("a", 0, 40.0), row("a", 1, 42.0), row("b", 0, 30.0), row("c", 0, 41.0), row("c", 1, None)]
    (section,) = make_sections(rows, ["a", "b", "c"], [0.5])
    assert section.best(0.5, "pruned") is None  # c is not finite, so a stands alone among the complete
    (section,) = make_sections([*rows, row("d", 0, 43.0), row("d", 1, 43.0)], ["a", "b", "c", "d"], [0.5])
    assert section.best(0.5, "pruned") == 41.0


def test_sections_follow_data_sets_and_dense_counts_once_a_seed() -> None:
    rows = [row(m, s, 30.0, "dense", b) for m in "ab" for s in (0, 1) for b in (0.2, 0.5)] + [row("a", 0, 9.0, dataset="other")]
    first, second = make_sections(rows, ["a", "b"], [0.2, 0.5])
    assert (first.dataset, first.dense) == ("text", Spread(30.0, 0.0, 2))
    assert (second.dataset, second.dense) == ("other", None)


def test_the_table_against_numbers_by_hand(tmp_path: Path) -> None:
    text = to_markdown(result_of(tmp_path))
    lines = text.splitlines()
    assert lines[0] == "## Perplexity on text, window of 128 tokens"
    assert lines[2] == "| removed | method | pruned | recovered | against adapruner | lower | seeds |"
    # recovered at 0.2: 30 + 0.2 * (10, 14, 12) = 32, 32.8, 32.4: mean 32.4, deviation 0.4
    assert f"| 20.0 % | adapruner | **42.00 ± 2.00** | **32.40 ± 0.40** | {MISSING} | {MISSING} | 3 |" in lines
    # l2: 36, 35.6, 37: mean 36.2, deviation sqrt(0.52) = 0.72; against adapruner 4, 2.8, 4.6: mean 3.8, sqrt(0.84) = 0.92
    assert "| 20.0 % | l2 | 61.00 ± 3.61 | 36.20 ± 0.72 | +3.80 ± 0.92 | 0 of 3 | 3 |" in lines
    # random at 0.5: 215, 265, 315; against 35, 37, 36: 180, 228, 279: mean 229, deviation sqrt((49^2 + 1 + 50^2) / 2) = 49.5
    assert "| 50.0 % | random | 500.0 ± 100.0 | 265.0 ± 50.0 | +229.0 ± 49.5 | 0 of 3 | 3 |" in lines
    assert "Dense: 30.00. Mean ± sample standard deviation over seeds; the difference to adapruner" in text
    assert "Sliding windows" in text  # the protocol stands beside the numbers
    for line in provenance_lines(validate_report(sample_report())):
        assert f"- {line}" in lines
    assert len(lines) == 2 + 2 + 6 + 4 + 1 + 4


def test_the_terminal_shows_the_same(tmp_path: Path) -> None:
    console = Console(width=120, file=io.StringIO())
    print_tables(result_of(tmp_path, {"l2, 50.0 %, seed 1": 1}), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "42.00 ± 2.00*" in text
    assert "+229.0 ± 49.5" in text
    assert "2 of 3, failed" in text
    assert "failed: l2, 50.0 %, seed 1: budget: expected less, got more; prune less" in text
    assert "nan" not in text


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    names = [f"comparison.{kind}" for kind in ("json", "csv", "md", "html", "svg", "png", "pareto.svg", "pareto.png", "pareto.json")]
    files = []
    for place, options in (("one", {}), ("two", {"jobs": 3})):
        (tmp_path / place).mkdir()
        spec = fake_spec(tmp_path / place, ["adapruner", "l2", "random"])
        cells = lay_out(spec)
        result = collect(spec, cells, run_cells(cells, Starter(), Silent(), pause=0, **options))
        write_tables(result, spec.folder)
        assert [p.name for p in write_plots(result, spec.folder)] == names[3:]
        files.append([(spec.folder / name).read_bytes() for name in names])
    assert files[0] == files[1]
    assert not list((tmp_path / "one" / "out").glob(".*.tmp"))


def test_json_and_csv_hold_every_measurement(tmp_path: Path) -> None:
    result = result_of(tmp_path, {"l2, 20.0 %, seed 0": 2})
    record = json.loads(to_json(result))
    assert len(record["rows"]) == (3 * 2 * 3 - 1) * 3
    first = record["rows"][1]
    assert first == {
        "method": "adapruner",
        "budget": 0.2,
        "seed": 0,
        "stage": "pruned",
        "dataset": "text",
        "window": 128,
        "perplexity": 40.0,
        "parameters": record["rows"][2]["parameters"],
        "plan": "adapruner-0.2-0",
    }
    assert record["rows"][0]["stage"] == "dense"
    assert record["rows"][0]["parameters"] > first["parameters"]
    reason = "budget: expected less, got more; prune less"
    assert record["failed"] == [{"method": "l2", "budget": 0.2, "seed": 0, "reason": reason}]
    assert record["summary"][0]["lines"][1]["stages"]["pruned"]["seeds"] == 2
    read = list(csv.DictReader(io.StringIO(to_csv(result.rows))))
    assert len(read) == len(record["rows"])
    assert (read[1]["perplexity"], read[1]["plan"]) == ("40.0", "adapruner-0.2-0")


def test_what_is_not_finite_is_said_and_is_valid_json() -> None:
    rows = (row("a", 0, None), row("a", 1, 40.0), row("b", 0, 50.0), row("b", 1, 52.0))
    sections = tuple(make_sections(rows, ["a", "b"], [0.5]))
    result = Result(("a", "b"), (0.5,), (0, 1), rows, sections, (), 3)
    json.loads(to_json(result), parse_constant=lambda name: pytest.fail(name))
    text = to_markdown(result)
    assert f"| 50.0 % | a | not finite | {MISSING} | {MISSING} | 2 |" in text
    assert "| 50.0 % | b | 51.00 ± 1.41 | not finite | 0 of 2 | 2 |" in text
    assert "- 3 cells are not done yet" in text


def test_nothing_at_all_is_an_empty_table_and_no_plot(tmp_path: Path) -> None:
    result = Result(("a",), (0.5,), (0,), (), (), (("a", 0.5, 0, "no memory"),))
    assert to_markdown(result) == "- failed: a, 50.0 %, seed 0: no memory\n"
    assert [path.name for path in write_plots(result, tmp_path)] == ["comparison.html"]
    assert "failed: a, 50.0 %, seed 0: no memory" in Page((tmp_path / "comparison.html").read_text()).text
    print_tables(result, Console(file=io.StringIO()))


@pytest.mark.parametrize("budgets", [[0.5], [0.2, 0.5, 0.7]])
def test_the_plot_names_every_method(tmp_path: Path, budgets: list[float]) -> None:
    write_plots(result_of(tmp_path, budgets=budgets), tmp_path)
    svg = (tmp_path / "comparison.svg").read_text()
    for word in ("adapruner", "l2", "random", "dense", "perplexity, recovered, log scale"):
        assert f">{word}<" in svg, word
    assert (">20 %<" in svg) == (len(budgets) > 1)
    assert "var(--" not in svg  # colours of a page


def test_the_page_holds_every_cell_of_the_table_and_its_charts(tmp_path: Path) -> None:
    result = result_of(tmp_path, {"l2, 20.0 %, seed 1": 1})
    write_plots(result, tmp_path)
    page = Page((tmp_path / "comparison.html").read_text())
    for row in section_table(result.sections[0], result).rows:
        assert "\n".join(cell.text for cell in row) in page.text
    assert "failed: l2, 20.0 %, seed 1: budget: expected less" in page.text
    assert page.headings == ["Perplexity", "Perplexity against cost", "Protocol"]
    assert [chart["description"] for chart in page.charts] == [
        "text, 128 tokens, 3 seeds",
        "text, 128 tokens: parameters, millions",
        "text, 128 tokens: latency, of the dense model's",
    ]
    lines = rows_of(page.charts[0])
    # recovered at 0.2: 32, 32.8, 32.4, as in the table above
    found = next(row for row in lines if row.get("method") == "adapruner" and row["removed"] == "20.0 %")
    assert (found["perplexity"], found["perplexity_low"], found["perplexity_high"]) == pytest.approx((32.4, 32.0, 32.8))


def test_a_value_with_more_deviation_than_mean_has_a_place_on_a_log_axis(tmp_path: Path) -> None:
    rows = (row("a", 0, 1.0), row("a", 1, 400.0), row("b", 0, 30.0), row("b", 1, 31.0))
    sections = tuple(make_sections(rows, ["a", "b"], [0.5]))
    write_plots(Result(("a", "b"), (0.5,), (0, 1), rows, sections), tmp_path)
    page = Page((tmp_path / "comparison.html").read_text())
    drawn = [r for r in rows_of(page.charts[0]) if "method" in r]
    scale = page.charts[0]["layer"][0]["encoding"]["x"]["scale"]
    assert (scale["type"], scale["nice"]) == ("log", False)  # a nice one reaches to whole powers of ten
    assert min(r["perplexity_low"] for r in drawn) > 0
