"""Tables of text, which the terminal, Markdown and the pages write from the same cells."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adapruner.evaluation.cost_table import COST_ROWS
from adapruner.pruning.fixed_recipe import SEARCHED
from adapruner.report.answer import Comparison, best_fixed_words
from adapruner.report.formats import (
    MISSING,
    TIMES,
    duration_text,
    nll_text,
    percent_text,
    perplexity_text,
    quantity_text,
    ratio_text,
    signed_percent_text,
)
from adapruner.report.schema import STAGES
from adapruner.report.sections import Candidate, Cost, DataCard, Search, Stage, Sweep, TaskScore, Took, ZeroShot

if TYPE_CHECKING:
    from rich.console import Console

Style = Literal["", "best", "own", "dense"]
_TERMINAL = {"": "", "best": "bold", "own": "bold", "dense": "dim"}


@dataclass(frozen=True)
class Cell:
    """One text; ``best`` of its column, of the method that is reported (``own``), or of the ``dense`` model."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class TextTable:
    """Columns, rows and the notes beneath."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    labels: int = 1
    """Leading columns that name a row: they stand at the left, the others at the right."""
    mark: str = ""
    """What the best cells are: the terminal marks them with a star, because bold is lost in a file."""

    def to_markdown(self) -> str:
        """A heading, the table, the notes; the best cells are bold."""
        sides = [":---" if number < self.labels else "---:" for number in range(len(self.columns))]
        rows = [[f"**{cell.text}**" if cell.style == "best" else cell.text for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, sides, *rows)]
        return "\n".join([f"## {self.title}\n", *lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def to_latex(self) -> str:
        """For a paper, with the package ``booktabs``: the best cells are bold, title and notes are the caption.

        >>> print(TextTable("A & B", ("name", "20 %"), ((Cell("l2"), Cell("31.0", "best")),)).to_latex())
        \\begin{table}
        \\centering
        \\begin{tabular}{lr}
        \\toprule
        name & 20 \\% \\\\
        \\midrule
        l2 & \\textbf{31.0} \\\\
        \\bottomrule
        \\end{tabular}
        \\caption{A \\& B.}
        \\end{table}
        <BLANKLINE>
        """
        cells = [[f"\\textbf{{{latex(c.text)}}}" if c.style == "best" else latex(c.text) for c in row] for row in self.rows]
        rows = [" & ".join(row) + " \\\\" for row in ([latex(name) for name in self.columns], *cells)]
        columns = "l" * self.labels + "r" * (len(self.columns) - self.labels)
        caption = " ".join([f"{self.title}.", *self.notes])
        lines = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", rows[0], "\\midrule", *rows[1:]]
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{latex(caption)}}}", "\\end{table}"]) + "\n"

    def print(self, console: Console) -> None:
        """On a terminal, or as plain text into a file. Title and notes are printed apart: in the table they would be wrapped to it."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        starred = any(cell.style == "best" for row in self.rows for cell in row)
        table = Table(box=box.SIMPLE_HEAD)
        for number, name in enumerate(self.columns):
            table.add_column(name, **({"overflow": "fold"} if number < self.labels else {"justify": "right", "no_wrap": True}))
        for row, following in zip(self.rows, [*self.rows[1:], None], strict=True):
            ends = ["*" if cell.style == "best" else " " * (starred and number >= self.labels) for number, cell in enumerate(row)]
            cells = [Text(f"{cell.text}{end}", style=_TERMINAL[cell.style]) for cell, end in zip(row, ends, strict=True)]
            group_ends = row[0].style == "dense" or (self.labels > 1 and following is not None and following[0] != row[0])
            table.add_row(*cells, end_section=group_ends)
        console.print()
        console.print(Text(self.title, style="bold"))
        console.print(table)
        for note in (*([f"* {self.mark}"] if starred else []), *self.notes):
            console.print(Text(note, style="dim"))


def latex(text: str) -> str:
    """Text with nothing in it that LaTeX would read as a command.

    >>> latex("20 % of a_b ± 0.1")
    '20 \\\\% of a\\\\_b $\\\\pm$ 0.1'
    """
    return "".join(_LATEX.get(character) or _plain_latex(character) for character in unicodedata.normalize("NFC", text))


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
_LATEX |= {"±": "$\\pm$", TIMES: "$\\times$", "<": "$<$", ">": "$>$", MISSING: "--", "|": "\\textbar{}", "`": "\\textasciigrave{}"}
# At the beginning of a row the end of the one before would take them for its own argument; some languages make quotes commands.
_LATEX |= {"[": "{[}", "]": "{]}", "*": "{*}", '"': "{\\char34}", "→": "$\\rightarrow$", "\N{NO-BREAK SPACE}": "~"}
#: Up to here, Latin with its accents, LaTeX knows a character by itself.
_LAST_LATIN = "\N{LATIN SMALL LETTER LONG S}"


def _plain_latex(character: str) -> str:
    """A character that LaTeX knows as it is; any other, which would end its run, by its number."""
    if character.isspace():
        return " "
    known = character.isprintable() and (character.isascii() or (character <= _LAST_LATIN and character.isalpha()))
    return character if known else f"\\texttt{{U+{ord(character):04X}}}"


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *notes: str | None) -> TextTable:
    """A table of plain texts; notes that are ``None`` or empty are left out."""
    return TextTable(title, tuple(columns), tuple(tuple(Cell(text) for text in row) for row in rows), tuple(note for note in notes if note))


def perplexity_table(comparison: Comparison) -> TextTable:
    """Methods by stage, in the order of the last stage that all have; and how far above the dense model there."""
    several, stages, rows, dense = len(comparison.rows) > 1, comparison.stages, [], comparison.dense
    if dense is not None:
        texts = (f"dense {perplexity_text(dense)}", *[""] * (len(stages) or 1), "")
        rows.append(tuple(Cell(text, "dense") for text in texts))
    for row in comparison.rows:
        cells = [Cell(row.method, "own" if several and row is comparison.own else "")]
        for stage in stages:
            value = row.values.get(stage)
            best = several and value is not None and value == comparison.best(stage)
            cells.append(Cell(MISSING if value is None else perplexity_text(value), "best" if best else ""))
        rows.append((*cells, Cell(change_text(dense, row.values[comparison.common] if comparison.common else row.final))))
    title, mark = f"Perplexity on {comparison.title} (lower is better)", f"lowest of its column; rows in the order of {comparison.common}"
    last = "vs dense" if comparison.common in (None, *stages[-1:]) else f"{comparison.common}, vs dense"
    return TextTable(title, ("method", *(stages or ("perplexity",)), last), tuple(rows), comparison.notes, mark=mark)


def change_text(before: float | None, after: float) -> str:
    """``+12.3 %``."""
    return signed_percent_text(after / before - 1) if before and math.isfinite(before) and math.isfinite(after) else MISSING


def score_table(zero_shot: ZeroShot) -> TextTable:
    """Zero-shot tasks by stage, ``0.6123 ± 0.0110`` with its standard error; means over tasks last."""
    rows = zero_shot.rows
    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]
    found = {(row.task, row.metric, row.stage): row for row in rows}
    names = dict.fromkeys((row.task, row.metric) for row in rows)
    texts = [[f"{task}, {metric}", *(_score_text(found.get((task, metric, stage))) for stage in stages)] for task, metric in names]
    title = "Zero-shot tasks (higher is better)"
    return make_table(title, ("task", *stages), [*texts, *_mean_rows(rows, stages)], zero_shot.protocol)


def _mean_rows(rows: Sequence[TaskScore], stages: Sequence[Stage]) -> Iterator[list[str]]:
    """Over several tasks with accuracies; there is no mean of other metrics, which have other units."""
    tasks = list(dict.fromkeys(row.task for row in rows if row.metric == "acc"))
    if len(tasks) < 2:
        return
    plain, normalised = ({(r.stage, r.task): r.value for r in rows if r.metric == metric} for metric in ("acc", "acc_norm"))
    for values, name in ((plain, "acc"), *([({**plain, **normalised}, "acc_norm or acc")] if normalised else [])):
        yield [f"mean of {len(tasks)}, {name}", *(_mean_text([values.get((stage, task)) for task in tasks]) for stage in stages)]


def _score_text(row: TaskScore | None) -> str:
    if row is None or row.value is None:
        return MISSING
    return f"{row.value:.4f}" if row.stderr is None else f"{row.value:.4f} ± {row.stderr:.4f}"


def _mean_text(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.4f}" if known and len(known) == len(values) else MISSING


def candidates_table(candidates: Sequence[Candidate]) -> TextTable:
    """The best few trials evaluated again, the winner first; NLL in nats per token."""
    titles = {"searched": "in the search", "reconstructed": "reconstructed", "recovered": "after a short recovery"}
    stages = [stage for stage in titles if any(getattr(c, stage) is not None for c in candidates)]
    rows = [[f"trial {c.trial}" if c.name == SEARCHED else c.name, *(nll_text(getattr(c, stage)) for stage in stages)] for c in candidates]
    return make_table("", ("best trials, evaluated again", *(titles[stage] for stage in stages)), rows)


def values_table(search: Search) -> TextTable:
    """The best recipe beside the best fixed one and the dense model."""
    best = "best recipe" if search.best_trial is None else f"best recipe, trial {search.best_trial}"
    values = ((best, search.best_value), ("best fixed recipe", search.best_fixed_value), ("dense model", search.dense_value))
    rows = [(name, nll_text(value)) for name, value in values if nll_text(value) != MISSING]
    note = None if search.best_fixed_value is None else f"Best fixed recipe: {best_fixed_words(search)}."
    return make_table("", ("on the search split", "nats per token"), rows, note)


def fixed_table(search: Search) -> TextTable:
    """Recipes that were tried before the search, the best first."""
    states = {"complete": "", "pruned": "stopped early", "failed": "failed"}
    fixed = [trial for trial in search.history if trial.name != SEARCHED]
    ordered = sorted(fixed, key=lambda t: (t.value is None, t.value or 0.0, t.trial))
    return make_table("", ("fixed recipe", "", "nats per token"), [(t.name, states[t.state], nll_text(t.value)) for t in ordered])


def cost_table(cost: Cost, *notes: str | None) -> TextTable:
    """Dense beside pruned; rows that were measured for neither are left out."""
    rows = []
    for row in map(COST_ROWS.find, COST_ROWS):
        dense, pruned = getattr(cost.dense, row.name, None), getattr(cost.pruned, row.name, None)
        if row.title and (dense is not None or pruned is not None):
            rows.append((row.title, quantity_text(dense, row.unit), quantity_text(pruned, row.unit), ratio_text(dense, pruned)))
    return make_table("Cost", ("", "dense", "pruned", "ratio"), rows, *notes)


def speed_tables(sweep: Sweep | None) -> Iterator[TextTable]:
    """Prefill and decoding over batch sizes and lengths; the ratio is that of times, as in the cost table: below 1 is faster."""
    for what, title in (("prefill", "Prefill"), ("decode", "Decoding")) if sweep else ():
        rows = []
        for row in sweep.rows if sweep else ():
            speeds = [MISSING if side is None else f"{getattr(side, f'{what}_tokens_per_s'):,.0f}/s" for side in (row.dense, row.pruned)]
            times = [None if side is None else getattr(side, f"{what}_ms") for side in (row.dense, row.pruned)]
            rows.append((f"{row.batch:,} x {row.seq_len:,}", *speeds, ratio_text(*times), f"{TIMES}{row.ideal:.2f}"))
        note = sweep.protocol if sweep and what == "decode" else None
        yield make_table(f"{title}, tokens per second", ("batch x length", "dense", "pruned", "ratio", "ideal"), rows, note)


def times_table(took: Took) -> TextTable:
    """Stages in their order, with their share of the whole, which is last; what took less than a tenth of a second is left out."""
    shown = [(name, seconds) for name, seconds in took.stages.items() if seconds >= 0.1]
    rows = [(name, duration_text(seconds), percent_text(seconds / took.seconds if took.seconds else 0.0)) for name, seconds in shown]
    return make_table("Time", ("stage", "time", "share"), [*rows, ("in all", duration_text(took.seconds), "")])


def text_table(card: DataCard) -> TextTable:
    """Every set of text with its sources and hash."""
    rows = [
        (f"{s.role} {s.name}".strip(), "; ".join(s.sources), f"{s.windows:,} x {s.seq_len:,}", f"{s.documents:,}", s.hash)
        for s in card.sets
    ]
    return make_table("", ("set", "from", "windows x tokens", "documents", "hash"), rows)
