"""The results as tables: JSON and CSV for programs, Markdown for a document, and the terminal's."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapruner.compare.costs import cost_table, cost_tables, csv_columns, csv_values
from adapruner.compare.summary import CostRow, Line, Paired, Row, Section, Spread
from adapruner.files.atomic import write_atomically
from adapruner.progress import terminal
from adapruner.report.formats import MISSING, percent_text, perplexity_text
from adapruner.report.tables import Cell, TextTable

if TYPE_CHECKING:
    from rich.console import Console

NAME = "comparison"


@dataclass(frozen=True)
class Result:
    """Everything the files are made from; the same result gives the same bytes."""

    methods: tuple[str, ...]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    sections: tuple[Section, ...]
    failures: tuple[tuple[str, float, int, str], ...] = ()
    """Method, budget, seed and the line that says why."""
    missing: int = 0
    """Cells not yet run."""
    protocol: str = ""
    """How perplexity was measured, in the reports' words."""
    card: tuple[str, ...] = ()
    """Held-out text with hashes, leak check, hardware and versions, of the first run; seeds and budgets stand in the rows."""
    other: str | None = None
    """The method that differences are taken to; the first one when empty."""
    costs: tuple[CostRow, ...] = ()
    """Times among them differ from run to run: they are in columns and tables of their own, and not in ``comparison.json``."""
    jobs: int = 1
    """Cells that ran at a time."""

    @property
    def against(self) -> str:
        """The method that differences are taken to."""
        return self.other or self.methods[0]

    @property
    def remarks(self) -> list[str]:
        """Failed and missing cells."""
        lines = [f"failed: {method}, {percent_text(budget)}, seed {seed}: {reason}" for method, budget, seed, reason in self.failures]
        return [*lines, f"{self.missing} cells are not done yet"] if self.missing else lines


def write_tables(result: Result, folder: Path) -> None:
    """``comparison.json``, ``comparison.csv``, ``comparison.md`` and ``comparison.tex``."""
    write_atomically(folder / f"{NAME}.json", to_json(result))
    write_atomically(folder / f"{NAME}.csv", to_csv(result.rows, result.costs))
    write_atomically(folder / f"{NAME}.md", to_markdown(result))
    write_atomically(folder / f"{NAME}.tex", "\n".join(section_table(section, result).to_latex() for section in result.sections))


def to_json(result: Result) -> str:
    """Rows and summary; numbers that are not finite are ``null``."""
    record = {
        "methods": list(result.methods),
        "budgets": list(result.budgets),
        "seeds": list(result.seeds),
        "against": result.against,
        "protocol": result.protocol,
        "card": list(result.card),
        "rows": [asdict(row) for row in result.rows],
        "summary": [_finite(asdict(section)) for section in result.sections],
        "failed": [dict(zip(("method", "budget", "seed", "reason"), failure, strict=True)) for failure in result.failures],
        "missing": result.missing,
    }
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[Row], costs: Sequence[CostRow] = ()) -> str:
    """One line per measurement, with what its cell's run took in columns of their own."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*Row.__dataclass_fields__, *(csv_columns(costs) if costs else ())], lineterminator="\n")
    writer.writeheader()
    took = {(cost.method, cost.budget, cost.seed): csv_values(cost) for cost in costs}
    for row in rows:
        measured = {key: value for key, value in asdict(row).items() if value is not None}
        writer.writerow({**measured, **took.get((row.method, row.budget, row.seed), {})})
    return text.getvalue()


def to_markdown(result: Result) -> str:
    """One table per dataset and window; the best mean of each budget and stage is bold. Then what the runs took."""
    tables = [*(section_table(section, result) for section in result.sections), *cost_tables(result)]
    parts = [table.to_markdown() for table in tables]
    parts += [f"{result.protocol}\n"] if result.protocol else []
    parts += [f"- {line}" for line in (*result.card, *result.remarks)]
    return "\n".join(parts).rstrip("\n") + "\n"


def print_tables(result: Result, console: Console | None = None) -> None:
    """Prints the tables on the terminal; the time by stage, which is wide, is in the files."""
    from rich.text import Text

    console = console or terminal()
    if not console.is_terminal:  # a file or a log is as wide as the table
        console.width = max(console.width, 120)
    for section in result.sections:
        section_table(section, result).print(console)
    took = cost_table(result)
    if took is not None:
        took.print(console)
    for remark in result.remarks:
        console.print(Text(remark, style="bold"), soft_wrap=True)


def section_table(section: Section, result: Result) -> TextTable:
    """Every method at every budget: each stage, the difference to the method compared with, at how many seeds it is lower."""
    rows = []
    for line in section.lines:
        stages = []
        for stage in section.stages:
            spread = line.stages.get(stage)
            best = spread is not None and spread.mean == section.best(line.budget, stage)
            stages.append(Cell(MISSING if spread is None else spread_text(spread), "best" if best else ""))
        ends = (difference_text(line.paired), lower_text(line.paired), _seeds(line, result))
        rows.append((Cell(percent_text(line.budget)), Cell(line.method), *stages, *map(Cell, ends)))
    dense = "" if section.dense is None else f"Dense: {perplexity_text(section.dense.mean)}. "
    seeds = (
        "Mean ± sample standard deviation over seeds; " if len(result.seeds) > 1 else "One seed: nothing here says how far chance goes; "
    )
    note = f"{dense}{seeds}the difference to {result.against} is taken seed by seed, at the last stage."
    return TextTable(
        f"Perplexity on {section.dataset}, window of {section.window:,} tokens",
        ("removed", "method", *section.stages, f"against {result.against}", "lower", "seeds"),
        tuple(rows),
        (note,),
        labels=2,
        mark="lowest mean of its budget and stage",
    )


def spread_text(spread: Spread) -> str:
    """Mean and sample standard deviation, both to the digits that suit the mean.

    >>> spread_text(Spread(34.153, 0.4217, 3)), spread_text(Spread(412.34, 12.04, 2)), spread_text(Spread(34.153, None, 1))
    ('34.15 ± 0.42', '412.3 ± 12.0', '34.15')
    """
    mean = perplexity_text(spread.mean)
    return mean if spread.deviation is None else f"{mean} ± {_as_fine_as(spread.deviation, spread.mean)}"


def difference_text(spread: Spread | None) -> str:
    """A difference with its sign.

    >>> difference_text(Spread(1.5, 0.25, 2)), difference_text(Spread(-120.04, 3.0, 3))
    ('+1.50 ± 0.25', '-120.0 ± 3.0')
    """
    if spread is None or not math.isfinite(spread.mean):
        return MISSING if spread is None else perplexity_text(None)
    mean = ("-" if spread.mean < 0 else "+") + _as_fine_as(abs(spread.mean), spread.mean)
    return mean if spread.deviation is None else f"{mean} ± {_as_fine_as(spread.deviation, spread.mean)}"


def lower_text(paired: Paired | None) -> str:
    """At how many of the shared seeds a method is lower.

    >>> lower_text(Paired(-1.0, 2.0, 3, lower=2, by_seed={0: -1.0, 1: -3.0, 2: 1.0}))
    '2 of 3'
    """
    return MISSING if paired is None else f"{paired.lower} of {paired.seeds}"


def _seeds(line: Line, result: Result) -> str:
    have = max((spread.seeds for spread in line.stages.values()), default=0)
    if have == len(result.seeds):
        return str(have)
    failed = any((method, budget) == (line.method, line.budget) for method, budget, _, _ in result.failures)
    return f"{have} of {len(result.seeds)}{', failed' if failed else ''}"


def _as_fine_as(value: float, measure: float) -> str:
    """Digits as in ``perplexity_text(measure)``."""
    size = abs(measure)
    return f"{value:z.2f}" if size < 100 else f"{value:z.1f}" if size < 1000 else f"{value:z,.0f}"


def _finite(value: Any) -> Any:
    """The values without numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
