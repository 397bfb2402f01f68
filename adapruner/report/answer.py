"""What a report says in one sentence, and its perplexities as rows of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapruner.report.formats import NOT_FINITE, count_text, nll_text, percent_text, perplexity_text, ratio_text
from adapruner.report.schema import SECTIONS, STAGES

OWN_METHOD = "adapruner"
"""The method the report is about, where it is among the rows."""


@dataclass(frozen=True)
class Row:
    """One method: stage -> perplexity. A stage that was not measured is absent; a value that is not finite is infinity."""

    method: str
    values: dict[str, float]

    @property
    def final(self) -> float:
        """Perplexity at the last stage that was measured."""
        return self.values[[stage for stage in STAGES if stage in self.values][-1]]


@dataclass(frozen=True)
class Comparison:
    """Every method on one dataset at one window."""

    dataset: str
    window: int
    """Tokens."""
    dense: float | None
    rows: tuple[Row, ...]
    """Sorted by the perplexity at their last stage."""

    @property
    def title(self) -> str:
        """``wikitext, window of 512 tokens``."""
        return f"{self.dataset}, window of {self.window:,} tokens"

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages after ``dense`` that at least one method has."""
        return tuple(s for s in STAGES[1:] if any(s in row.values for row in self.rows))

    @property
    def own(self) -> Row | None:
        """The row the report is about: adapruner's, else the method taken furthest, else the best."""
        if not self.rows:
            return None
        return next((r for r in self.rows if r.method == OWN_METHOD), max(self.rows, key=lambda r: len(r.values)))

    def best(self, stage: str) -> float | None:
        """Lowest finite perplexity of a stage."""
        values = [r.values[stage] for r in self.rows if stage in r.values and math.isfinite(r.values[stage])]
        return min(values, default=None)


def comparisons(report: Mapping[str, Any]) -> list[Comparison]:
    """One comparison per dataset and window, in the order of the report."""
    dense: dict[tuple[str, int], float | None] = {}
    methods: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for row in report.get("perplexity") or ():
        key = (row["dataset"], row["window"])
        value = row["value"] if row["value"] is not None and math.isfinite(row["value"]) else math.inf
        methods.setdefault(key, {})
        if row["stage"] == "dense":
            dense[key] = value
        else:
            methods[key].setdefault(row["method"], {})[row["stage"]] = value
    return [
        Comparison(*key, dense.get(key), tuple(sorted((Row(m, v) for m, v in rows.items()), key=lambda r: (r.final, r.method))))
        for key, rows in methods.items()
    ]


#: What a budget counts, in words: after "of the" and alone.
COUNTED = {
    "block": ("block parameters", "the block parameters"),
    "all": ("model's parameters", "all parameters"),
    "macs": ("multiply-accumulates", "the multiply-accumulates"),
    "memory": ("weights' memory", "the weights' memory"),
    "latency": ("modelled latency", "the modelled latency"),
}


def answer_sentence(report: Mapping[str, Any], arrow: str = "->", times: str = "x") -> str:
    """The result in one sentence: what was removed, perplexity stage by stage, latency."""
    model, cost = report["model"], report.get("cost")
    inall = f"{count_text(model['parameters_dense'])} {arrow} {count_text(model['parameters_pruned'])} in all"
    parts = [f"Removed {percent_text(model['pruned_fraction'])} of the {COUNTED[model['budget_of']][0]} ({inall})"]
    path = perplexity_path(report)
    parts.append("perplexity " + f" {arrow} ".join(path) if path else "perplexity not measured")
    if cost and cost["dense"]["latency_ms"] and cost["pruned"]["latency_ms"] is not None:
        parts.append(f"latency {ratio_text(cost['dense']['latency_ms'], cost['pruned']['latency_ms'], times)}")
    return "; ".join(parts) + "."


def perplexity_path(report: Mapping[str, Any]) -> list[str]:
    """``28.10``, ``35.21 pruned``, ...: the report's own method on the first dataset; empty where nothing was measured."""
    for comparison in comparisons(report)[:1]:
        values = comparison.own.values if comparison.own else {}
        dense = [] if comparison.dense is None else [perplexity_text(comparison.dense)]
        return dense + [f"{perplexity_text(values[s])} {s}" for s in STAGES if s in values]
    return []


def calibration_sentence(calibration: Mapping[str, Any]) -> str | None:
    """How many samples speak, and where the winning set is; ``None`` where the report does not say."""
    effective, path = calibration.get("effective_samples"), calibration.get("set_file")
    parts = []
    if effective is not None:
        parts.append(f"the weights amount to {effective:.1f} of {calibration['samples']:,} samples")
    if path:
        parts.append(f"the set is in {path}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else None


def spread_sentence(calibration: Mapping[str, Any]) -> str | None:
    """How much the choice of samples matters, beside random sets of the same size; ``None`` where that was not measured."""
    spread = calibration.get("spread")
    if not spread:
        return None
    values, chosen = spread["values"], spread["chosen"]
    finite = [v for v in values if v is not None and math.isfinite(v)]
    sets = f"{len(values)} random set{'s' if len(values) > 1 else ''} of {spread['size']:,} sample{'s' if spread['size'] > 1 else ''}"
    between = f" ± {nll_text(spread['std'])}" if len(finite) > 1 else ""
    some = f"{nll_text(spread['mean'])}{between} nats per token" if finite else NOT_FINITE
    lost = f" ({len(values) - len(finite)} not finite)" if finite and len(finite) < len(values) else ""
    if chosen is None or not math.isfinite(chosen):
        return f"Same recipe with {sets}: {some}{lost}; the chosen weights: {NOT_FINITE}."
    above = len(values) - sum(v <= chosen for v in finite)
    place = f"lower than {'all' if above == len(values) else above} of them" if above else "lower than none of them"
    return f"Same recipe with {sets}: {some}{lost}; the chosen weights: {nll_text(chosen)}, {place}."


def left_out(report: Mapping[str, Any]) -> list[str]:
    """What this report does not hold, in the words the table and the page use."""
    missing = [section for section in SECTIONS if not report.get(section)]
    recovery = report.get("recovery")
    if recovery:
        missing += [name for key, name in (("reconstruction", "reconstruction"), ("lora", "LoRA recovery")) if not recovery[key]]
    names = {"zero_shot": "zero-shot tasks", "generations": "generated text", "search": "search (skipped)", "recovery": "recovery (off)"}
    return [names.get(name, name) for name in missing]
