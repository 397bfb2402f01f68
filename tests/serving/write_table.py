"""Writes vLLM's tables in ``docs/serving.md``, between their markers, from ``docs/serving-vllm.json``, which ``make test-vllm`` writes.

python -m tests.serving.write_table
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from adapruner.files.atomic import write_atomically

from . import cases
from .results import Row, load

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
#: Name of a way of serving -> head of its column.
WAYS = {"vllm": "its own class", "transformers": "`--model-impl transformers`", "deci": "`--format deci`"}
_MARKED = re.compile(r"(<!-- vllm (\w+): .* -->\n).*?(<!-- vllm \2 end -->)", re.DOTALL)


def said(row: Row | None) -> str:
    """One cell."""
    if row is None:
        return ""
    if row.error:
        return "does not load"
    return f"`{row.served_by}`, {row.equal} of {row.tokens}" if row.way == "vllm" else f"{row.equal} of {row.tokens}"


def forms(record: dict[str, Any]) -> str:
    """Family x form x way: what loaded, and how many tokens were equal."""
    rows = {(row.family, row.form, row.way): row for row in map(Row.read, record["rows"])}
    lines = [f"| family | form | {' | '.join(WAYS.values())} |", "|" + "---|" * (2 + len(WAYS))]
    for family in cases.FAMILIES:
        for form in cases.FORMS:
            lines.append(f"| {family} | {form} | {' | '.join(said(rows.get((family, form, way))) for way in WAYS)} |")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"{versions}; empty: not tried, since the folder is not of that form.", ""])


def real(record: dict[str, Any]) -> str:
    """The real model: tokens and speed of each way, beside what the parameters would give."""
    if "real" not in record:
        return "Not measured yet: `make test-vllm` does.\n"
    rows = record["real"]["rows"]
    speeds = {(row["model"], row["way"]): max(row["tokens_per_second"]) for row in rows}  # the round that was disturbed least
    dense = {"vllm": speeds["dense", "vllm"], "deci": speeds["dense", "vllm"], "transformers": speeds["dense", "transformers"]}
    whole = next(row["parameters"] for row in rows if row["model"] == "dense")
    lines = ["| model | served by | tokens equal | tokens a second | times the dense model's | ideal |", "|---|---|---|---|---|---|"]
    for row in rows:
        rounds, name = row["tokens_per_second"], f"{row['model']}, {row['parameters'] / 1e6:.1f} M parameters"
        spread = f"{max(rounds):.0f} ({statistics.median(rounds):.0f})"
        gain = "" if row["model"] == "dense" else f"{max(rounds) / dense[row['way']]:.2f}"
        ideal = "" if row["model"] == "dense" else f"{whole / row['parameters']:.2f}"
        lines.append(f"| {name} | {WAYS[row['way']]}: `{row['class']}` | {row['equal']} of {row['tokens']} | {spread} | {gain} | {ideal} |")
    return "\n".join([*lines, ""])


def written(page: str, record: dict[str, Any]) -> str:
    """The page with its tables as the record has them."""
    tables = {"forms": forms(record), "real": real(record)}
    return _MARKED.sub(lambda found: f"{found[1]}{tables[found[2]]}{found[3]}", page)


if __name__ == "__main__":
    write_atomically(PAGE, written(PAGE.read_text(encoding="utf-8"), load()))
