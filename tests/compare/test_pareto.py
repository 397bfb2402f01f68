from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapruner.compare.cells import lay_out
from adapruner.compare.command import collect
from adapruner.compare.pareto import front_of, make_points
from adapruner.compare.plots import write_plots
from adapruner.compare.schedule import run_cells
from adapruner.compare.summary import CostRow, Row, Spread, make_sections
from adapruner.compare.tables import Result
from tests.report.pages import Page, rows_of

from .fakes import Silent, Starter, fake_spec

#: (method, budget) -> perplexity, parameters, latency.
MEASURED = {
    ("a", 0.2): (35.0, 800, 8.0),
    ("a", 0.5): (50.0, 500, 5.0),
    ("b", 0.2): (34.0, 810, 9.0),
    ("b", 0.5): (60.0, 500, 4.0),
    ("c", 0.2): (36.0, 820, None),
}


def result() -> Result:
    rows = [Row(m, b, 0, "pruned", "text", 128, ppl, n, "plan") for (m, b), (ppl, n, _) in MEASURED.items()]
    rows.append(Row("a", 0.2, 0, "dense", "text", 128, 30.0, 1000, ""))
    costs = tuple(CostRow(m, b, 0, n, 1000, ms, 10.0) for (m, b), (_, n, ms) in MEASURED.items())
    sections = tuple(make_sections(rows, ["a", "b", "c"], [0.2, 0.5]))
    return Result(("a", "b", "c"), (0.2, 0.5), (0,), tuple(rows), sections, costs=costs)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = make_points(result().sections[0], result().costs)
    assert len(points) == 5
    by_hand = {
        axis: {
            (p.method, p.budget)
            for p in points
            if p.cost(axis) is not None
            and not any(
                q.cost(axis) is not None
                and q.cost(axis) <= p.cost(axis)  # type: ignore[operator]
                and q.perplexity.mean <= p.perplexity.mean
                and (q.cost(axis), q.perplexity.mean) != (p.cost(axis), p.perplexity.mean)
                for q in points
            )
        }
        for axis in ("parameters", "latency_ratio")
    }
    assert by_hand["parameters"] == {("a", 0.5), ("a", 0.2), ("b", 0.2)}
    assert by_hand["latency_ratio"] == {("b", 0.5), ("a", 0.5), ("a", 0.2), ("b", 0.2)}
    for axis, expected in by_hand.items():
        assert {(p.method, p.budget) for p in front_of(points, axis)} == expected


def test_latencies_that_are_as_good_as_equal_do_not_make_a_front() -> None:
    rows = [Row(m, 0.2, 0, "pruned", "text", 128, ppl, 800, "plan") for m, ppl in (("a", 50.0), ("b", 40.0), ("c", 60.0))]
    costs = [CostRow(m, 0.2, 0, 800, 1000, ms, 10.0) for m, ms in (("a", 8.0), ("b", 8.05), ("c", 7.0))]
    (section,) = make_sections(rows, ["a", "b", "c"], [0.2])
    assert [p.method for p in front_of(make_points(section, costs), "latency_ratio")] == ["c", "b"]


def test_a_latency_that_one_seed_lacks_is_not_a_mean_over_the_others() -> None:
    rows = [Row("a", 0.2, seed, "pruned", "text", 128, 35.0 + seed, 800, "plan") for seed in (0, 1)]
    (section,) = make_sections(rows, ["a"], [0.2])
    (point,) = make_points(section, [CostRow("a", 0.2, 0, 800, 1000, 8.0, 10.0), CostRow("a", 0.2, 1, 800, 1000, None, 10.0)])
    assert point.latency_ms is None
    assert point.parameters == Spread(800, 0.0, 2)
    (point,) = make_points(section, [CostRow("a", 0.2, 0, 800, 1000, 8.0, 10.0), CostRow("a", 0.2, 1, 800, 1000, 6.0, 10.0)])
    assert point.latency_ms == Spread(7.0, pytest.approx(2**0.5), 2)
    assert point.latency_ratio == Spread(pytest.approx(0.7), pytest.approx(0.02**0.5), 2)


def test_the_plot_and_the_json_beside_it(tmp_path: Path) -> None:
    files = [file for file in write_plots(result(), tmp_path) if "pareto" in file.name]
    assert [file.name for file in files] == ["comparison.pareto.svg", "comparison.pareto.png", "comparison.pareto.json"]
    svg = files[0].read_text()
    for word in ("a", "b", "c", "dense", "parameters, millions", "latency, of the dense model's", "perplexity, pruned"):
        assert f">{word}<" in svg, word
    record = json.loads(files[2].read_text())
    assert record["dense"] == {"parameters": 1000, "latency_ratio": 1.0}
    points = {(p["method"], p["budget"]): p for p in record["sections"][0]["points"]}
    assert points["a", 0.5]["on_front"] == ["parameters", "latency_ratio"]
    assert points["b", 0.5]["on_front"] == ["latency_ratio"]
    assert points["c", 0.2]["latency_ms"] is None
    charts = Page((tmp_path / "comparison.html").read_text()).charts
    for chart, axis, scale in zip(charts[1:], ("parameters", "latency_ratio"), (1e-6, 0.1), strict=True):
        front = [(r["cost"], r["perplexity"]) for r in rows_of(chart) if r.get("words") == "Pareto front"]
        expected = [
            (MEASURED[key][1 if axis == "parameters" else 2], MEASURED[key][0]) for key, p in points.items() if axis in p["on_front"]
        ]
        assert front == [pytest.approx((cost * scale, perplexity)) for cost, perplexity in sorted(expected)]


def test_costs_come_from_the_cells_reports(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path)
    cells = lay_out(spec)
    found = collect(spec, cells, run_cells(cells, Starter({"l2, 20.0 %, seed 0": 1}), Silent(), pause=0))
    assert len(found.costs) == len(cells) - 1
    report = json.loads((cells[0].folder / "report.json").read_text())
    first = found.costs[0]
    assert (first.parameters, first.latency_ms) == (report["model"]["parameters_pruned"], report["cost"]["pruned"]["latency_ms"])
    assert first.latency_dense_ms == report["cost"]["dense"]["latency_ms"]
