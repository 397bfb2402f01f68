"""The model card: what the export is, what was removed and how, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapruner.export.licence import is_hub_name
from adapruner.pruning.plan import PruningPlan

FACTS = ("license", "license_name", "license_link", "revision", "seeds", "recovery", "versions", "adapter")
"""Keys of a card that have a place of their own; every other one is something measured."""
TAGS = ["pruning", "structured-pruning", "adapruner"]


def model_card(plan: PruningPlan, *, class_name: str, stock: bool, notes: list[str], card: dict[str, Any] | None = None) -> str:
    """The text of README.md.

    Args:
        plan: what the model was pruned by.
        class_name: in ``architectures``.
        stock: whether a class of ``transformers`` reads the folder.
        notes: one line each, for the reader.
        card: what :func:`adapruner.export.licence.base_licence` and :func:`card_of_report` give, ``revision`` (of the base
            model), ``adapter`` (the folder of the adapters inside the export), and any measured values: a number or text, a
            table as a list of rows, or a mapping of names to values.
    """
    card = dict(card or {})
    facts = {key: card.pop(key, None) for key in FACTS}
    base, licence = _base_name(plan), facts["license"]
    known = ", ".join(str(facts[key]) for key in ("license", "license_name", "license_link") if facts[key])
    revision = f", revision {facts['revision']}" if facts["revision"] else ""
    sections = [
        _front_matter(base, facts),
        f"# {Path(base).name}, pruned by {plan.pruned_fraction:.1%}",
        f"Base model: {base}{revision}. Licence of the base model: {known if licence else 'not known here; see the base model'}.",
        _loading(class_name, stock, facts["adapter"]),
        "\n".join(f"- {note}" for note in notes),
        _removed(plan),
        _origin(plan, facts),
        "\n\n".join(["## Measured", *(_measured(name, value) for name, value in card.items())]) if card else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def card_of_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a run, out of the dictionary of its ``report.json``.

    Seeds, recovery and versions; then perplexity per stage and method, cost, search and the protocols. A section that the
    report lacks is left out.
    """
    card: dict[str, Any] = {"seeds": {"search": report["seed"]}} if "seed" in report else {}
    card |= {key: value for key, value in (("recovery", _recovery(report)), ("versions", report.get("versions"))) if value}
    rows = _perplexity_rows(report.get("perplexity") or [])
    if rows:
        card["Perplexity"] = rows
        card["Protocol of perplexity"] = report.get("protocol") or "not recorded"
    cost = report.get("cost") or {}
    costs = [{"model": name, **_numbers(cost[name])} for name in ("dense", "pruned") if cost.get(name)]
    if costs:
        card["Cost"] = costs
        card["Protocol of cost"] = cost.get("protocol", "not recorded")
        card["Hardware"] = report.get("hardware", "not recorded")
    search = report.get("search") or {}
    if search:
        asked = {"trials": "trials", "completed": "completed", "dense_value": "dense model", "best_value": "chosen recipe"}
        card["Search"] = {name: search[key] for key, name in asked.items() if search.get(key) is not None}
        card["Values of the search"] = search.get("judged", "NLL") + ", nats per token on the search split"
    return card


def written_in(dtype: str | None, card: Mapping[str, Any]) -> dict[str, str]:
    """One more entry where the weights are rounded after what a card says was measured."""
    return {"Weights": f"written in {dtype}, after these measurements"} if dtype and set(card) - set(FACTS) else {}


def _recovery(report: Mapping[str, Any]) -> str:
    recovery = report.get("recovery") or {}
    refit, lora = recovery.get("reconstruction"), recovery.get("lora")
    parts = [f"closed-form refit with ridge {refit['ridge']:g}"] if refit else []
    parts += [f"LoRA of rank {lora['r']}, alpha {lora['alpha']:g}, {lora['steps']} steps"] if lora else []
    return "; ".join(parts)


def _perplexity_rows(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and stage, one column for each set and window, in the order of the report."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in measured:
        row = rows.setdefault((entry["method"], entry["stage"]), {"method": entry["method"], "stage": entry["stage"]})
        value = entry["value"]
        row[f"{entry['dataset']}, windows of {entry['window']}"] = "not finite" if value is None else float(value)
    return list(rows.values())


def _numbers(cost: Mapping[str, Any]) -> dict[str, Any]:
    units = {"parameters": "parameters", "macs": "MACs", "weight_memory_gib": "weights, GiB", "latency_ms": "forward, ms"}
    return {unit: cost[key] for key, unit in units.items() if cost.get(key) is not None}


def _base_name(plan: PruningPlan) -> str:
    """A hub name as it is; of a path on someone's disk only the last part."""
    name = str(plan.model.get("name") or "unknown")
    return name if is_hub_name(name) else Path(name).name


def _front_matter(base: str, facts: Mapping[str, Any]) -> str:
    import yaml

    record: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": TAGS}
    if "/" in base:  # only a hub name is a link
        record["base_model"] = base
    record |= {key: " ".join(str(facts[key]).split()) for key in ("license", "license_name", "license_link") if facts[key]}
    return f"---\n{yaml.safe_dump(record, sort_keys=False, allow_unicode=True)}---"


def _loading(class_name: str, stock: bool, adapter: str | None) -> str:
    remote = "" if stock else ", trust_remote_code=True"
    lines = [
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained(folder{remote})  # {class_name}",
    ]
    if adapter:
        lines.insert(0, "from peft import PeftModel")
        lines.append(f'model = PeftModel.from_pretrained(model, f"{{folder}}/{adapter}")  # the recovery, kept apart')
    return "\n".join(["```python", *lines, "```"])


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


def _origin(plan: PruningPlan, facts: Mapping[str, Any]) -> str:
    lines = [
        "## How it came about",
        "",
        f"- plan: `{plan.hash}` (plan.json), for the base model with fingerprint `{plan.model.get('fingerprint', 'not recorded')}`",
        f"- budget: `{json.dumps(plan.budget)}`",
        f"- seed: {plan.provenance.get('seed', 'not recorded')}",
    ]
    if facts["seeds"]:
        lines.append("- seeds: " + ", ".join(f"{name} {value}" for name, value in facts["seeds"].items()))
    if facts["recovery"]:
        lines.append(f"- recovery: {facts['recovery']}")
    if facts["versions"]:
        lines.append("- made with " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    return "\n".join([*lines, "- recipe:", "", "```json", json.dumps(plan.recipe, indent=1), "```"])


def _measured(name: str, value: Any) -> str:
    if isinstance(value, dict):
        value = [{"": key, "value": entry} for key, entry in value.items()]
    if not (isinstance(value, list) and value and all(isinstance(row, dict) for row in value)):
        return f"{name}: {_cell(value)}"
    columns = list(dict.fromkeys(key for row in value for key in row))
    head = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([f"### {name}", "", *head, *("| " + " | ".join(_cell(row.get(key, "")) for key in columns) + " |" for row in value)])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|").replace("\n", " ")
