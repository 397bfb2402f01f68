"""The model card: what the export is, what was removed and how, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapruner.export.licence import base_licence, is_hub_name
from adapruner.pruning.fixed_recipe import BEST_FIXED, IN_WORDS, fixed_recipe_of, plain_recipe_sentence
from adapruner.pruning.plan import PruningPlan
from adapruner.recovery.configuration import strength_in_words

_LICENCE = ("license", "license_name", "license_link")
FACTS = (*_LICENCE, "revision", "seeds", "recovery", "versions", "adapter", "results")
"""Keys of a card that have a place of their own; every other one is something measured."""
TAGS = ["pruning", "structured-pruning", "adapruner"]
WEIGHTS = "Weights"
"""Key of the entry that says that they were rounded after the measurements."""
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


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
    from huggingface_hub import ModelCard

    measured = dict(card or {})
    facts = {key: measured.pop(key, None) for key in FACTS}
    plain = fixed_recipe_of(plan.provenance)
    base, dense, pruned = _base_name(plan), plan.parameters["dense"], plan.parameters["pruned"]
    text = ModelCard.from_template(
        _card_data(base, facts, rounded=WEIGHTS in measured),
        template_path=str(_TEMPLATE),
        plan=plan,
        base=base,
        class_name=class_name,
        stock=stock,
        notes=notes,
        licence=", ".join(str(facts[key]) for key in _LICENCE if facts["license"] and facts[key]),
        removed=f"{1 - pruned / dense:.1%}",
        widths=_widths(plan),
        budget=json.dumps(plan.budget),
        recipe=json.dumps(plan.recipe, indent=1),
        measured=[_measured(name, value) for name, value in measured.items()],
        plain=None if plain is None else plain_recipe_sentence(plain),
        seeds=_pairs(facts["seeds"]),
        versions=_pairs(facts["versions"]),
        **{key: facts[key] for key in ("revision", "recovery", "adapter")},
    )
    return f"{text}\n"


def card_of_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a run, out of the dictionary of its ``report.json``.

    Seeds, recovery and versions; then perplexity per stage and method, cost, search and the protocols. A section that the
    report lacks is left out.
    """
    card: dict[str, Any] = {"seeds": {"search": report["seed"]}} if "seed" in report else {}
    card |= {key: value for key, value in (("recovery", _recovery(report)), ("versions", report.get("versions"))) if value}
    perplexity = report.get("perplexity") or []
    if perplexity:
        card["results"] = _last_of_ours(perplexity)
        card["Perplexity"] = _perplexity_rows(perplexity)
        if any(row["method"] == BEST_FIXED for row in perplexity):
            card[f"What *{BEST_FIXED}* is"] = IN_WORDS
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


def card_of_run(source: str, measured: Mapping[str, Any], *, revision: str | None = None, dtype: str | None = None) -> dict[str, Any]:
    """A card: the licence of the base model, what a run measured, and that the weights were rounded since, where they were.

    Args:
        source: folder or hub name of the base model.
        measured: what :func:`card_of_report` gives.
        revision: of the base model.
        dtype: that the weights are written in; ``None``: the model's own.
    """
    return {**base_licence(source, revision), "revision": revision, **measured, **written_in(dtype, measured)}


def written_in(dtype: str | None, card: Mapping[str, Any]) -> dict[str, str]:
    """One more entry where the weights are rounded after what a card says was measured."""
    return {WEIGHTS: f"written in {dtype}, after these measurements"} if dtype and set(card) - set(FACTS) else {}


def _card_data(base: str, facts: Mapping[str, Any], rounded: bool) -> Any:
    """The front matter. What was measured before rounding is no result of these weights; the text says how it was measured."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=entry["dataset"],
            dataset_name=entry["dataset"],
            metric_type="perplexity",
            metric_name=f"perplexity, windows of {entry['window']}",
            metric_value=float(entry["value"]),
        )
        for entry in ([] if rounded else facts["results"] or [])
    ]
    values: dict[str, Any] = {key: " ".join(str(facts[key]).split()) for key in _LICENCE if facts[key]}
    if "/" in base:  # only a hub name is a link
        values["base_model"] = base
    if results:
        values |= {"eval_results": results, "model_name": base.rpartition("/")[2]}
    return ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=TAGS, **values)


def _last_of_ours(perplexity: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the pruned model reached in the end, where it is a number."""
    ours = [entry for entry in perplexity if entry["method"] == "adapruner"]
    return [entry for entry in ours if entry["stage"] == ours[-1]["stage"] and entry["value"] is not None]


def _recovery(report: Mapping[str, Any]) -> str:
    recovery = report.get("recovery") or {}
    refit, lora = recovery.get("reconstruction"), recovery.get("lora")
    parts = []
    if refit and not refit.get("left_out"):
        parts.append(f"closed-form refit, {strength_in_words(refit.get('ridge'), refit.get('candidates', ()))}")
    if lora:
        full = lora.get("form") == "full"
        how = "full fine-tuning" if full else f"LoRA of rank {lora['r']}, alpha {lora['alpha']:g}"
        parts += [f"{how}, {lora['steps']} steps"]
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


def _widths(plan: PruningPlan) -> list[str]:
    lines = []
    for kind, what in (("attention", "Attention units (heads, or KV heads with their query heads)"), ("ffn", "FFN channels")):
        kept = plan.widths(kind)
        if kept:
            units = max(count for name, count in plan.units.items() if name.endswith(f".{kind}"))
            shown = f"{kept[0]} in every layer" if len(set(kept)) == 1 else ", ".join(map(str, kept))
            lines.append(f"{what} kept, of {units}: {shown}.")
    return lines


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())


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
