"""Writes the tables of ``docs/refit.md`` from ``refit_strength.json``, ``after_pruning.json`` and ``real_models.json`` beside it.

python benchmarks/refit_page.py docs
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from pages import between_markers
from real_record import DENSE
from real_text import CALIBRATED, UNSEEN
from refit_strength import table as strength_table

Cells = list[dict[str, Any]]
#: Column -> file and stages of a method and of the dense model.
COLUMNS = {
    "144 windows, mean 0.01": ("real_models", "recovered", "recovered"),
    "144 windows, chosen": ("after_pruning", "refit 144, LoRA 30", "LoRA 30"),
    "768 windows, chosen": ("after_pruning", "refit 768, LoRA 30", "LoRA 30"),
}


def mean_log(cells: Cells, domains: tuple[str, ...], **key: Any) -> float | None:
    """Of perplexities on these domains, where all are there."""
    found = [math.log(c["perplexity"]) for c in cells if key.items() <= c.items() and c.get("domain") in domains]
    return statistics.fmean(found) if len(found) == len(domains) else None


def above_dense(cells: Cells, seeds: list[int], stages: tuple[str, str], domains: tuple[str, ...], **key: Any) -> str:
    """Per cent above the dense model after the same training, with the spread over seeds; empty where it is not measured."""
    values = []
    for seed in seeds:
        own = mean_log(cells, domains, seed=seed, stage=stages[0], **key)
        dense = mean_log(cells, domains, seed=seed, stage=stages[1], method=DENSE)
        if own is not None and dense is not None:
            values.append(100 * (math.exp(own - dense) - 1))
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread} %" if values else ""


def after_table(records: dict[str, Cells]) -> str:
    """Markdown: unseen domains, calibrated ones behind the oblique, for every column; all of the seeds that were measured anew."""
    anew = records["after_pruning"]
    columns = {name: of for name, of in COLUMNS.items() if of[0] != "after_pruning" or any(c["stage"] == of[1] for c in anew)}
    lines = ["| removed, units | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for budget, method in dict.fromkeys((c["budget"], c["method"]) for c in anew if c["method"] != DENSE):
        seeds = sorted({c["seed"] for c in anew if (c["budget"], c["method"]) == (budget, method)})
        cells = []
        for file, *stages in columns.values():
            key = {"budget": budget, "method": method}
            parts = [above_dense(records[file], seeds, (stages[0], stages[1]), domains, **key) for domains in (UNSEEN, CALIBRATED)]
            cells.append(" / ".join(part for part in parts if part))
        lines.append(f"| {budget:.0%}, {method} | {', '.join(map(str, seeds))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path, help="folder of the page and of the figures")
    docs = parser.parse_args().docs
    records = {
        name: json.loads((docs / f"{name}.json").read_text())["cells"] for name in ("refit_strength", "after_pruning", "real_models")
    }
    budgets = sorted({c["budget"] for c in records["refit_strength"] if c["budget"]})
    page = (docs / "refit.md").read_text()
    page = between_markers(page, "<!-- strength -->", "<!-- end of strength -->", strength_table(records["refit_strength"], budgets))
    page = between_markers(page, "<!-- after -->", "<!-- end of after -->", after_table(records))
    (docs / "refit.md").write_text(page)


if __name__ == "__main__":
    main()
