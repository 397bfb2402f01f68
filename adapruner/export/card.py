"""The model card: what the export is, what was removed, and what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from adapruner.pruning.plan import PruningPlan


def model_card(plan: PruningPlan, *, class_name: str, stock: bool, notes: list[str], card: dict[str, Any] | None = None) -> str:
    """The text of README.md.

    ``card``: ``license`` (of the base model) and any measured values: a number or text, a table as a list of rows, or
    a mapping of names to values.
    """
    card = dict(card or {})
    base, licence = _base_name(plan), card.pop("license", None)
    sections = [
        _front_matter(base, licence),
        f"# {Path(base).name}, pruned by {plan.pruned_fraction:.1%}",
        f"Base model: {base}. Licence of the base model: {licence or 'not known here; see the base model'}.",
        _loading(class_name, stock),
        "\n".join(f"- {note}" for note in notes),
        _removed(plan),
        _origin(plan),
        "\n\n".join(["## Measured", *(_measured(name, value) for name, value in card.items())]) if card else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _base_name(plan: PruningPlan) -> str:
    """A hub name as it is; of a path on someone's disk only the last part."""
    name = str(plan.model.get("name") or "unknown")
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists() else Path(name).name


def _front_matter(base: str, licence: str | None) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [pruning, adapruner]"]
    if "/" in base:  # only a hub name is a link
        lines.append(f"base_model: {base}")
    if licence:
        lines.append(f"license: {licence}")
    return "\n".join(["---", *lines, "---"])


def _loading(class_name: str, stock: bool) -> str:
    remote = "" if stock else ", trust_remote_code=True"
    code = f"from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(folder{remote})  # {class_name}"
    return f"```python\n{code}\n```"


def _removed(plan: PruningPlan) -> str:
    dense, pruned = plan.parameters["dense"], plan.parameters["pruned"]
    lines = ["## What was removed", "", f"Parameters: {dense:,} -> {pruned:,} ({1 - pruned / dense:.1%} removed)."]
    for kind, what in (("attention", "Attention units (heads, or KV heads with their query heads)"), ("ffn", "FFN channels")):
        kept = plan.widths(kind)
        if kept:
            units = max(count for name, count in plan.units.items() if name.endswith(f".{kind}"))
            shown = f"{kept[0]} in every layer" if len(set(kept)) == 1 else ", ".join(map(str, kept))
            lines += ["", f"{what} kept, of {units}: {shown}."]
    return "\n".join(lines)


def _origin(plan: PruningPlan) -> str:
    lines = [
        "## How it came about",
        "",
        f"- plan: `{plan.hash}` (plan.json)",
        f"- budget: `{json.dumps(plan.budget)}`",
        f"- seed: {plan.provenance.get('seed', 'not recorded')}",
        "- recipe:",
        "",
        "```json",
        json.dumps(plan.recipe, indent=1),
        "```",
    ]
    return "\n".join(lines)


def _measured(name: str, value: Any) -> str:
    if isinstance(value, dict):
        value = [{"": key, "value": entry} for key, entry in value.items()]
    if not (isinstance(value, list) and value and all(isinstance(row, dict) for row in value)):
        return f"{name}: {_cell(value)}"
    columns = list(dict.fromkeys(key for row in value for key in row))
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([f"### {name}", "", *head, *("| " + " | ".join(_cell(row.get(key, "")) for key in columns) + " |" for row in value)])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")
