"""The report on the terminal: the answer first, then the tables. Fits 80 columns and reads well in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adapruner.progress import is_shown, terminal
from adapruner.pruning.fixed_recipe import SEARCHED
from adapruner.report.answer import (
    below_dense_sentence,
    best_fixed_words,
    calibration_sentences,
    checked_sentence,
    comparisons,
    gates_sentence,
    ideal_sentence,
    left_out,
    loading_code,
    plain_recipe_words,
    seed_sentence,
    took_sentence,
    widths_sentence,
    worse_sentences,
)
from adapruner.report.formats import MISSING, memory_text, nll_text
from adapruner.report.headline import answer_sentence
from adapruner.report.schema import Report, validate_report
from adapruner.report.sections import Export, Search, Took
from adapruner.report.tables import TextTable, cost_table, perplexity_table, score_table, speed_tables, times_table
from adapruner.stage_times import running_times

if TYPE_CHECKING:
    from rich.console import Console


def print_report(record: Mapping[str, Any] | Report, console: Console | None = None) -> None:
    """Prints the answer, the perplexities per dataset and window, how much calibration mattered, the cost and the export.

    Raises:
        ConfigurationError: if the report lacks a key.
    """
    from rich.text import Text

    report, console = validate_report(record), console or terminal()
    console.print()
    console.print(Text(answer_sentence(report), style="bold"))
    for part in _parts(report):
        if isinstance(part, TextTable):
            part.print(console)
        elif isinstance(part, str):  # to be copied: whole lines, however long
            console.print()
            console.print(Text(part), soft_wrap=True)
        elif part:
            console.print()
            for line in part:
                console.print(Text(line))
    missing = left_out(report)
    if missing:
        console.print()
        console.print(Text(f"Not in this report: {'; '.join(missing)}.", style="dim"))


def print_times() -> None:
    """Prints how long the stages of the run took that this code is part of, where a run says anything."""
    times = running_times()
    if times is not None and is_shown():
        times_table(Took(**times.summary())).print(terminal())


def _parts(report: Report) -> Iterator[TextTable | list[str] | str]:
    """Tables, lines that stand together, and code."""
    yield from map(perplexity_table, comparisons(report))
    seeds = seed_sentence(report)
    below = below_dense_sentence(report)
    yield [*worse_sentences(report), *([below] if below else []), *([seeds] if seeds else [])]
    if report.zero_shot:
        yield score_table(report.zero_shot)
    calibration = calibration_sentences(report.calibration)
    if calibration:
        calibration[0] = f"Calibration: {calibration[0][0].lower()}{calibration[0][1:]}"
    gates = gates_sentence(report)
    plain = plain_recipe_words(report)
    yield [*(_search_lines(report.search) if report.search else []), *(said for said in (plain, gates) if said), *calibration]
    if report.cost:
        notes = [said for said in (ideal_sentence(report.cost), widths_sentence(report)) if said]
        yield cost_table(report.cost, *notes, report.cost.protocol)
        yield from speed_tables(report.cost.sweep)
    if report.export:
        yield _export_lines(report.export)
        yield "\n".join(line for line in loading_code(report.export).splitlines() if line)
    if report.took and report.took.stages:
        yield times_table(report.took)
    took = took_sentence(report)
    yield [took] if took else []


def _search_lines(search: Search) -> list[str]:
    """The search in one line, values in nats per token, and what its best fixed recipe is."""
    named = (("chosen plan", search.best_value), ("best fixed recipe", search.best_fixed_value), ("dense", search.dense_value))
    values = ", ".join(f"{name} {nll_text(value)}" for name, value in named if value is not None)
    stopped = f"{search.completed} completed, {search.stopped_early} stopped early"
    fixed = [] if search.best_fixed_value is None else [f"Best fixed recipe: {best_fixed_words(search)}."]
    return [
        f"Search: {search.trials} trials, {stopped}; {search.judged}, nats per token: {values or MISSING}.",
        *_second_look(search),
        *fixed,
    ]


def _second_look(search: Search) -> list[str]:
    """By what the chosen plan was chosen, where the trials' own values did not decide."""
    chosen, fixed = search.candidates[:1], [c for c in search.candidates if c.name != SEARCHED][:1]
    stages = [stage for stage in ("recovered", "reconstructed") if chosen and getattr(chosen[0], stage) is not None]
    if not stages or not fixed or fixed == chosen or getattr(fixed[0], stages[0]) is None:
        return []
    values = (nll_text(getattr(candidate, stages[0])) for candidate in (*chosen, *fixed))
    return [f"Looked at again, {stages[0]}: chosen plan {next(values)}, best fixed recipe {next(values)}; this decided."]


def _export_lines(export: Export) -> list[str]:
    """Where the folder is, by what it loads, and the notes."""
    loads = "loads with stock transformers" if export.stock else "loads with trust_remote_code=True"
    lines = [
        f"Exported to {export.path}: {export.class_name}, {loads}.",
        f"Loaded again: {checked_sentence(export)}.",
        *(f"- {note}" for note in export.notes),
    ]
    if export.gguf is not None:
        file = export.gguf
        lines.append(f"For llama.cpp, {file.path}: {file.architecture} in {file.dtype}, {memory_text(file.bytes / 2**30)}.")
        lines += [f"- {note}" for note in file.notes]
    return lines
