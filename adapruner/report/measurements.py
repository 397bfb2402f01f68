"""What was measured, as rows of text for the terminal and the page: zero-shot tasks, speed, bits per byte, protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapruner.report.answer import Comparison
from adapruner.report.formats import MISSING, ratio_text
from adapruner.report.schema import STAGES

ACCURACY, NORMALISED = "acc", "acc_norm"

CARD_COLUMNS = ("set", "from", "windows x tokens", "documents", "hash")
SPEED_COLUMNS = ("batch x length", "dense", "pruned", "ratio", "ideal")


def score_rows(zero_shot: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Stages that were scored, and for each task and metric a label with one text a stage; means over tasks last.

    ``0.6123 ± 0.0110`` is a value with its standard error.
    """
    rows = zero_shot["rows"]
    stages: list[str] = [stage for stage in STAGES if any(row["stage"] == stage for row in rows)]
    found = {(row["task"], row["metric"], row["stage"]): row for row in rows}
    names = dict.fromkeys((row["task"], row["metric"]) for row in rows)
    table = [(f"{task}, {metric}", [_score_text(found.get((task, metric, stage))) for stage in stages]) for task, metric in names]
    return stages, table + _mean_rows(rows, stages)


def _mean_rows(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Over several tasks with accuracies; nothing is said of other metrics, which have other units."""
    tasks = list(dict.fromkeys(row["task"] for row in rows if row["metric"] == ACCURACY))
    if len(tasks) < 2:
        return []
    values = {(row["stage"], row["task"], row["metric"]): row["value"] for row in rows}
    plain = [_mean_text([values.get((stage, task, ACCURACY)) for task in tasks]) for stage in stages]
    said = [(f"mean of {len(tasks)}, {ACCURACY}", plain)]
    if any(row["metric"] == NORMALISED for row in rows):
        best = [[values.get((stage, task, NORMALISED), values.get((stage, task, ACCURACY))) for task in tasks] for stage in stages]
        said.append((f"mean of {len(tasks)}, {NORMALISED} or {ACCURACY}", [_mean_text(some) for some in best]))
    return said


def _score_text(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return MISSING
    return f"{row['value']:.4f}" if row["stderr"] is None else f"{row['value']:.4f} ± {row['stderr']:.4f}"


def _mean_text(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.4f}" if known and len(known) == len(values) else MISSING


def speed_rows(sweep: Mapping[str, Any], what: str, times: str = "x") -> list[tuple[str, ...]]:
    """Texts under :data:`SPEED_COLUMNS` for each batch size and length.

    Args:
        what: ``prefill`` or ``decode``.
        times: before a ratio; the ratio is that of times, as in the cost table: below 1 is faster.
    """
    rows = []
    for row in sweep["rows"]:
        dense, pruned = row["dense"], row["pruned"]
        speeds = [MISSING if side is None else f"{side[f'{what}_tokens_per_s']:,.0f}/s" for side in (dense, pruned)]
        ratio = MISSING if dense is None or pruned is None else ratio_text(dense[f"{what}_ms"], pruned[f"{what}_ms"], times)
        rows.append((f"{row['batch']:,} x {row['seq_len']:,}", *speeds, ratio, f"{times}{row['ideal']:.2f}"))
    return rows


def ideal_sentence(cost: Mapping[str, Any], times: str = "x") -> str | None:
    """The latency that MACs alone would give beside the measured one; ``None`` where either was not measured."""
    dense, pruned = cost["dense"], cost["pruned"]
    ideal, real = (ratio_text(dense[key], pruned[key], times) for key in ("macs", "latency_ms"))
    return None if MISSING in (ideal, real) else f"Latency {real}; if nothing but MACs counted, {ideal}."


def bits_sentence(report: Mapping[str, Any], comparison: Comparison) -> str | None:
    """Bits per byte of the dense model and of the report's own method; ``None`` where they are not known."""
    own = comparison.own
    methods = ("dense", *([own.method] if own else []))
    rows = [
        row
        for row in report.get("perplexity") or ()
        if (row["dataset"], row["window"]) == (comparison.dataset, comparison.window) and row["method"] in methods
    ]
    known = sorted((row for row in rows if row.get("bits_per_byte") is not None), key=lambda row: STAGES.index(row["stage"]))
    texts = [f"{row['stage']} {row['bits_per_byte']:.4f}" for row in known]
    return f"Bits per byte: {', '.join(texts)}." if texts else None


def text_protocol(report: Mapping[str, Any], comparison: Comparison) -> str | None:
    """How the comparison's perplexities were measured; ``None`` where the report does not say it for each set."""
    said = report.get("protocols") or ()
    return next((p["words"] for p in said if (p["dataset"], p["window"]) == (comparison.dataset, comparison.window)), None)


def card_rows(card: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Texts under :data:`CARD_COLUMNS` for each set of the data card."""
    return [
        (
            f"{row['role']} {row['name']}".strip(),
            "; ".join(row["sources"]),
            f"{row['windows']:,} x {row['seq_len']:,}",
            f"{row['documents']:,}",
            row["hash"],
        )
        for row in card["sets"]
    ]


def card_lines(report: Mapping[str, Any]) -> list[str]:
    """What a table of several runs needs beside its numbers: held-out text with hashes, leak check, hardware, versions."""
    card = report.get("data")
    lines = []
    if card:
        held = [row for row in card["sets"] if row["role"] == "evaluation"]
        lines += [
            f"{row['name']}, window {row['seq_len']:,}: {'; '.join(row['sources'])}; {row['documents']:,} documents, hash {row['hash']}"
            for row in held
        ]
        lines.append(f"leaks: {card['leaks']}")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [*lines, f"hardware: {report['hardware']}", f"versions: {versions}"]
