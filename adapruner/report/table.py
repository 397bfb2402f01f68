"""The report in the terminal: the answer first, then the tables. Fits 80 columns and reads well in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapruner.report.answer import Comparison, answer_sentence, calibration_sentence, comparisons, left_out, spread_sentence
from adapruner.report.formats import (
    MISSING,
    count_text,
    energy_text,
    memory_text,
    milliseconds_text,
    nll_text,
    perplexity_text,
    ratio_text,
)
from adapruner.report.measurements import SPEED_COLUMNS, bits_sentence, ideal_sentence, score_rows, speed_rows, text_protocol
from adapruner.report.schema import validate_report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the answer, the comparison per dataset and window, how much calibration mattered, the cost and the export.

    Raises:
        ConfigurationError: if the report lacks a key.
    """
    from rich.console import Console
    from rich.text import Text

    validate_report(report)
    console = console or Console()
    console.print()
    console.print(Text(answer_sentence(report), style="bold"))
    for comparison in comparisons(report):
        caption = "* lowest of its column; rows in the order of their last stage" if len(comparison.rows) > 1 else None
        notes = (caption, bits_sentence(report, comparison), text_protocol(report, comparison))
        _print_table(console, f"Perplexity on {comparison.title} (lower is better)", _comparison_table(comparison), *notes)
    if report.get("zero_shot"):
        _print_table(console, "Zero-shot tasks (higher is better)", _score_table(report["zero_shot"]), report["zero_shot"]["protocol"])
    if report.get("search"):
        console.print()
        console.print(Text(search_line(report["search"])))
    for line in calibration_lines(report.get("calibration") or {}):
        console.print(Text(line))
    if report.get("cost"):
        _print_cost(console, report["cost"])
    if report.get("export"):
        console.print()
        for line in export_lines(report["export"]):
            console.print(Text(line))
    missing = left_out(report)
    if missing:
        console.print()
        console.print(Text(f"Not in this report: {', '.join(missing)}.", style="dim"))


def search_line(search: Mapping[str, Any]) -> str:
    """The search in one line; values in nats per token."""
    values = [
        f"{name} {nll_text(search[key])}"
        for key, name in (("best_value", "best"), ("best_fixed_value", "best fixed recipe"), ("dense_value", "dense"))
        if search[key] is not None
    ]
    stopped = f"{search['completed']} completed, {search['stopped_early']} stopped early"
    return f"Search: {search['trials']} trials, {stopped}; NLL per token: {', '.join(values) or MISSING}."


def calibration_lines(calibration: Mapping[str, Any]) -> list[str]:
    """How many samples speak, and how much it matters which."""
    sentences = [s for s in (calibration_sentence(calibration), spread_sentence(calibration)) if s]
    return [f"Calibration: {sentences[0][0].lower()}{sentences[0][1:]}", *sentences[1:]] if sentences else []


def export_lines(export: Mapping[str, Any]) -> list[str]:
    """Where the folder is, how it loads, and the notes."""
    loads = "loads with stock transformers" if export["stock"] else "loads with trust_remote_code=True"
    difference = export["max_abs_logit_difference"]
    checked = "logits not compared" if difference is None else f"largest logit difference {difference:.1e}"
    return [f"Exported to {export['path']}: {export['class']}, {loads}; {checked}.", *(f"- {note}" for note in export["notes"])]


def _print_cost(console: Console, cost: Mapping[str, Any]) -> None:
    _print_table(console, "Cost", _cost_table(cost), ideal_sentence(cost), cost["protocol"])
    sweep: Any = cost.get("sweep")
    for what, title in (("prefill", "Prefill"), ("decode", "Decoding")) if sweep else ():
        table = _table(SPEED_COLUMNS[0], SPEED_COLUMNS[1:])
        for row in speed_rows(sweep, what):
            table.add_row(*row)
        _print_table(console, f"{title}, tokens per second", table, sweep["protocol"] if what == "decode" else None)


def _print_table(console: Console, title: str, table: Table, *captions: str | None) -> None:
    """Title and captions are printed on their own: inside the table they would be wrapped to its width."""
    from rich.text import Text

    console.print()
    console.print(Text(title, style="bold"))
    console.print(table)
    for caption in captions:
        if caption:
            console.print(Text(caption, style="dim"))


def _table(first: str, others: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _comparison_table(comparison: Comparison) -> Table:
    from rich.text import Text

    stages = comparison.stages
    table = _table("method", stages or ("perplexity",))
    if comparison.dense is not None:
        table.add_row(Text("dense"), *["" for _ in stages[1:]], Text(f"{perplexity_text(comparison.dense)} "), style="dim")
        table.add_section()
    for row in comparison.rows:
        own = row is comparison.own and len(comparison.rows) > 1
        table.add_row(Text(row.method, style="bold" if own else ""), *(_cell(comparison, row.values.get(stage), stage) for stage in stages))
    return table


def _cell(comparison: Comparison, value: float | None, stage: str) -> Text:
    """One perplexity; the star keeps the best visible where bold is not, for instance in a file."""
    from rich.text import Text

    if value is None:
        return Text(f"{MISSING} ")
    best = len(comparison.rows) > 1 and value == comparison.best(stage)
    return Text(f"{perplexity_text(value)}{'*' if best else ' '}", style="bold" if best else "")


def _score_table(zero_shot: Mapping[str, Any]) -> Table:
    stages, rows = score_rows(zero_shot)
    table = _table("task", tuple(stages))
    for label, texts in rows:
        table.add_row(label, *texts)
    return table


def _cost_table(cost: Mapping[str, Any]) -> Table:
    dense, pruned = cost["dense"], cost["pruned"]
    table = _table("", ("dense", "pruned", "ratio"))
    for label, key, text in COST_ROWS:
        if dense.get(key) is not None or pruned.get(key) is not None:
            table.add_row(label, text(dense.get(key)), text(pruned.get(key)), ratio_text(dense.get(key), pruned.get(key)))
    return table


COST_ROWS = (
    ("parameters", "parameters", count_text),
    ("MACs", "macs", count_text),
    ("latency", "latency_ms", milliseconds_text),
    ("per decoded token", "decode_ms", milliseconds_text),
    ("weight memory", "weight_memory_gib", memory_text),
    ("peak memory", "peak_memory_gib", memory_text),
    ("energy", "prefill_energy_j", energy_text),
)
