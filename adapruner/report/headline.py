"""The first sentence of a report: what was removed, and what that did to perplexity and latency."""

from __future__ import annotations

from adapruner.data.sets import TRUSTED_WINDOWS
from adapruner.report.answer import Comparison, comparisons, counted
from adapruner.report.formats import count_text, percent_text, perplexity_text, ratio_text
from adapruner.report.schema import STAGES, Report

#: Texts, each at one window, whose perplexities are all in the first sentence.
FEW_TEXTS = 3


def answer_sentence(report: Report, arrow: str = "->") -> str:
    """The result in one sentence: what was removed, perplexity stage by stage, latency."""
    model, cost = report.model, report.cost
    sizes = f"{count_text(model.parameters_dense)} {arrow} {count_text(model.parameters_pruned)} in all"
    parts = [f"Removed {percent_text(model.pruned_fraction)} of the {counted(report)[0]} ({sizes})"]
    parts.append(perplexity_words(report, arrow))
    if cost and cost.dense.latency_ms and cost.pruned.latency_ms is not None:
        parts.append(f"latency {ratio_text(cost.dense.latency_ms, cost.pruned.latency_ms)}")
    return "; ".join(parts) + "."


def perplexity_words(report: Report, arrow: str = "->") -> str:
    """``perplexity 28.10 -> 35.21 pruned -> 30.02 recovered``: the report's own method stage by stage; on each of a few texts dense and
    final, on the first of many, which says how many there are."""
    found = [comparison for comparison in comparisons(report) if comparison.dense is not None or comparison.own]
    if not found:
        return "perplexity not measured"
    if len(found) == 1:
        return f"perplexity {f' {arrow} '.join(_path(found[0]))}{_few(report, found[0])}"
    several = len({comparison.dataset for comparison in found}) < len(found)
    shown = found if len(found) <= FEW_TEXTS else found[:1]
    said = []
    for comparison in shown:
        path = _path(comparison)
        name = f"{comparison.dataset} ({comparison.window:,} tokens)" if several else comparison.dataset
        said.append(f"{f' {arrow} '.join(dict.fromkeys((path[0], path[-1])))} on {name}{_few(report, comparison)}")
    more = len(found) - len(shown)
    return f"perplexity {', '.join(said)}{f', the first of {len(found)} measurements' if more else ''}"


def _few(report: Report, comparison: Comparison) -> str:
    """`` (1 window)`` behind a figure that rests on hardly any text."""
    sets = report.data.sets if report.data else []
    found = [s.windows for s in sets if s.role == "evaluation" and (s.name, s.seq_len) == (comparison.dataset, comparison.window)]
    few = min(found, default=TRUSTED_WINDOWS)
    return f" ({few} window{'s' if few > 1 else ''})" if few < TRUSTED_WINDOWS else ""


def _path(comparison: Comparison) -> list[str]:
    """``28.10``, ``35.21 pruned``, ...: the report's own method on one text."""
    values = comparison.own.values if comparison.own else {}
    dense = [] if comparison.dense is None else [perplexity_text(comparison.dense)]
    return dense + [f"{perplexity_text(values[s])} {s}" for s in STAGES if s in values]
