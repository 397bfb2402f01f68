"""The sections of the page, each from the report to HTML, or ``None`` where the report lacks that part."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapruner.report.answer import Comparison, calibration_sentence, comparisons, spread_sentence
from adapruner.report.formats import MISSING, TIMES, duration_text, nll_text, percent_text, perplexity_text, ratio_text, value_text
from adapruner.report.markup import Markup, element
from adapruner.report.measurements import (
    CARD_COLUMNS,
    SPEED_COLUMNS,
    bits_sentence,
    card_rows,
    ideal_sentence,
    score_rows,
    speed_rows,
    text_protocol,
)
from adapruner.report.plots import bars_plot, layers_plot, loss_plot, perplexity_plot, search_plot, spread_plot
from adapruner.report.table import COST_ROWS

IMPORTANCE_ROWS = 12
"""Search dimensions shown; the rest is summed up in one line."""
KIND_TITLES = {"attention": "Attention units", "ffn": "FFN channels"}


def section(title: str, words: str | None, *children: Any) -> Markup:
    """A heading, one line that says how to read what follows, the content."""
    return element("section", element("h2", title), words and element("p", words), *children)


def comparison_section(report: Mapping[str, Any]) -> Markup | None:
    """Perplexity by method and stage, a plot and a table per dataset and window."""
    parts = comparisons(report)
    if not parts:
        return None
    words = "Every method on the same text. Lower is better; the dashed line is the dense model."
    blocks = []
    for part in parts:
        notes = [element("p", note, class_="note") for note in (bits_sentence(report, part), text_protocol(report, part)) if note]
        blocks.append(
            element("div", element("h3", part.title), perplexity_plot(part), _comparison_table(part), *notes, class_="comparison")
        )
    return section("Comparison", words, *blocks)


def _comparison_table(comparison: Comparison) -> Markup:
    stages = comparison.stages
    head = element("tr", element("th", "method"), *(element("th", s) for s in stages or ("perplexity",)))
    rows = []
    if comparison.dense is not None:
        blanks = [element("td") for _ in stages[1:]]
        rows.append(element("tr", element("th", "dense"), *blanks, element("td", perplexity_text(comparison.dense)), class_="dense"))
    for row in comparison.rows:
        cells = []
        for stage in stages:
            value = row.values.get(stage)
            best = value is not None and len(comparison.rows) > 1 and value == comparison.best(stage)
            cells.append(element("td", MISSING if value is None else perplexity_text(value), class_="best" if best else None))
        own = row is comparison.own and len(comparison.rows) > 1
        rows.append(element("tr", element("th", row.method), *cells, class_="own" if own else None))
    return _scrolled(element("table", element("thead", head), element("tbody", *rows)))


def zero_shot_section(report: Mapping[str, Any]) -> Markup | None:
    """Every task and metric by stage."""
    tasks = report.get("zero_shot")
    if not tasks:
        return None
    stages, rows = score_rows(tasks)
    return section("Zero-shot tasks", f"Higher is better. {tasks['protocol']}.", _text_table(("task", *stages), [(n, *t) for n, t in rows]))


def search_section(report: Mapping[str, Any]) -> Markup | None:
    """The history of the search and its values."""
    search = report.get("search")
    if not search:
        return None
    took = f"{duration_text(search['seconds_total'])}, of which {duration_text(search['seconds_statistics'])} for the statistics"
    counts = f"{search['trials']} trials in {took}: {search['completed']} completed, {search['stopped_early']} stopped early."
    best = f"trial {search['best_trial']}" if search["best_trial"] is not None else ""
    rows = [
        ("best recipe", nll_text(search["best_value"]), best),
        ("best fixed recipe", nll_text(search["best_fixed_value"]), ""),
        ("dense model", nll_text(search["dense_value"]), ""),
    ]
    cells = [
        element("tr", element("th", name), element("td", note), element("td", value)) for name, value, note in rows if value != MISSING
    ]
    head = element("thead", element("tr", element("th", "NLL on the search split"), element("th"), element("th", "nats per token")))
    table = element("div", element("table", head, element("tbody", *cells)))
    fixed = [t for t in search["history"] if t["name"] != "searched"]
    halves = element("div", table, _fixed_table(fixed), class_="pair") if fixed else table
    judged = search.get("judged") or "NLL of the model as cut"
    words = f"{counts} Vertical axis: {judged}, in nats per token, search split."
    again = [_candidates_table(search["candidates"])] if search.get("candidates") else []
    return section("Search", words, search_plot(search), element("br"), halves, *again)


def _candidates_table(candidates: Sequence[Mapping[str, Any]]) -> Markup:
    """The second look at the best few, the winner first."""
    stages = [s for s in ("searched", "reconstructed", "recovered") if any(c[s] is not None for c in candidates)]
    names = [f"trial {c['trial']}" if c["name"] == "searched" else c["name"] for c in candidates]
    rows = [
        element("tr", element("th", name), *(element("td", nll_text(c[s])) for s in stages))
        for name, c in zip(names, candidates, strict=True)
    ]
    titles = {"searched": "in the search", "reconstructed": "reconstructed", "recovered": "after a short recovery"}
    head = element("tr", element("th", "the best few again"), *(element("th", titles[s]) for s in stages))
    return _scrolled(element("table", element("thead", head), element("tbody", *rows)))


def _fixed_table(fixed: Sequence[Mapping[str, Any]]) -> Markup:
    ordered = sorted(fixed, key=lambda t: (t["value"] is None, t["value"] or 0.0, t["trial"]))
    states = {"complete": "", "pruned": "stopped early", "failed": "failed"}
    rows = [
        element("tr", element("th", t["name"]), element("td", states[t["state"]]), element("td", nll_text(t["value"]))) for t in ordered
    ]
    head = element("tr", element("th", "fixed recipe"), element("th"), element("th", "nats per token"))
    return element("div", element("table", element("thead", head), element("tbody", *rows)))


def layers_section(report: Mapping[str, Any]) -> Markup | None:
    """What every layer keeps, attention beside FFN."""
    model = report["model"]
    if not model["units"]:
        return None
    blocks = []
    for kind, units in model["units"].items():
        title = KIND_TITLES.get(kind, kind)
        total = f"{title}: {sum(units['kept']):,} of {sum(units['dense']):,} kept"
        blocks.append(element("div", element("h3", total), layers_plot(f"{title} per layer", units["dense"], units["kept"])))
    same = "Every layer keeps the same number of units." if model["uniform"] else "Layers keep different numbers of units."
    return section("What is kept", f"Filled: kept; outline: the dense layer. {same}", element("div", *blocks, class_="pair"))


def calibration_section(report: Mapping[str, Any]) -> Markup | None:
    """Weight of every calibration source and cluster, and how much the choice mattered."""
    pool = report.get("calibration")
    if not pool:
        return None
    clusters, spread = pool.get("clusters") or {}, pool.get("spread")
    weighed = "source and every cluster" if clusters else "source"
    words = f"Weight of every {weighed}; {pool['samples']:,} windows of {pool['seq_len']:,} tokens in all."
    blocks = [bars_plot("Calibration weight and windows by source", _shares(pool["sources"]))]
    if clusters:
        blocks.append(bars_plot("Calibration weight and windows by cluster", _shares(clusters)))
    told, compared = calibration_sentence(pool), spread_sentence(pool)
    blocks += [element("p", told, class_="note")] if told else []
    blocks += [element("p", compared), spread_plot(spread)] if spread and compared else []
    blocks += _loudest(pool.get("heaviest") or [])
    return section("Calibration", words, *blocks)


def _loudest(samples: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Which samples speak heaviest: weight, source and how the text begins."""
    if not samples:
        return []
    rows = [element("li", element("div", _loudness(s), class_="tag"), s["text"]) for s in samples]
    return [element("h3", "The samples with the largest weights"), element("ol", *rows, class_="samples")]


def _shares(groups: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    return [(name, g["weight"], f"{g['weight']:.2f} · {g['samples']:,} windows") for name, g in groups.items()]


def _loudness(sample: Mapping[str, Any]) -> str:
    """``4.7 % · code, sample 40``, or ``each 2.1 % · code, sample 40 and 31 more``."""
    others = sample["alike"] - 1
    return f"{'each ' * (others > 0)}{percent_text(sample['weight'])} · {sample['source']}, sample {sample['id']:,}" + (
        f" and {others:,} more" if others else ""
    )


def importance_section(report: Mapping[str, Any]) -> Markup | None:
    """Which search dimensions mattered."""
    importance = (report.get("search") or {}).get("importance")
    if not importance:
        return None
    ordered = sorted(importance.items(), key=lambda item: (-item[1], item[0]))
    rows = [(name, value, percent_text(value)) for name, value in ordered[:IMPORTANCE_ROWS]]
    rest = ordered[IMPORTANCE_ROWS:]
    more = element("p", f"{len(rest)} more dimensions share {percent_text(sum(v for _, v in rest))}.", class_="note") if rest else None
    words = "Share of the differences between trials that each dimension explains."
    return section("What mattered in the search", words, bars_plot("Importance of search dimensions", rows), more)


def recovery_section(report: Mapping[str, Any]) -> Markup | None:
    """Reconstruction in a sentence, LoRA as a curve."""
    recovery = report.get("recovery") or {}
    reconstruction, lora = recovery.get("reconstruction"), recovery.get("lora")
    if not reconstruction and not lora:
        return None
    words = []
    if reconstruction:
        words.append(
            f"Closed-form reconstruction (ridge {value_text(reconstruction['ridge'])}) took {duration_text(reconstruction['seconds'])}."
        )
    if lora:
        ranks = f"rank {lora['r']}, alpha {value_text(lora['alpha'])}"
        words.append(f"LoRA ({ranks}): {lora['steps']:,} steps in {duration_text(lora['seconds'])}. Vertical axis: loss in nats per token.")
    return section("Recovery", " ".join(words), loss_plot(lora["history"]) if lora else None)


def cost_section(report: Mapping[str, Any]) -> Markup | None:
    """Parameters, MACs, latency, memory, dense beside pruned."""
    cost = report.get("cost")
    if not cost:
        return None
    dense, pruned = cost["dense"], cost["pruned"]
    rows = [
        (name, text(dense.get(key)), text(pruned.get(key)), ratio_text(dense.get(key), pruned.get(key), TIMES))
        for name, key, text in COST_ROWS
        if dense.get(key) is not None or pruned.get(key) is not None
    ]
    ideal, sweep = ideal_sentence(cost, TIMES), cost.get("sweep")
    parts = [_text_table(("", "dense", "pruned", "ratio"), rows), ideal and element("p", ideal, class_="note")]
    for what, title in (("prefill", "Prefill"), ("decode", "Decoding")) if sweep else ():
        parts += [element("h3", f"{title}, tokens per second"), _text_table(SPEED_COLUMNS, speed_rows(sweep, what, TIMES))]
    parts += [element("p", sweep["protocol"], class_="note")] if sweep else []
    return section("Cost", cost["protocol"] or None, *parts)


def export_section(report: Mapping[str, Any]) -> Markup | None:
    """Where the exported model is and how it loads."""
    export = report.get("export")
    if not export:
        return None
    difference = export["max_abs_logit_difference"]
    rows = [
        ("folder", element("code", export["path"])),
        ("class", element("code", export["class"])),
        ("loads with", "stock transformers" if export["stock"] else "trust_remote_code=True"),
        ("logits", "not compared" if difference is None else f"differ by at most {difference:.1e} after loading"),
        *(("note", note) for note in export["notes"]),
    ]
    return section("Export", "The model folder as written to disk.", _facts(rows))


def generations_section(report: Mapping[str, Any]) -> Markup | None:
    """Generated text, before and after."""
    texts = report.get("generations")
    if not texts:
        return None
    cards = []
    for text in texts:
        sides = [
            element("div", element("span", name, class_="tag"), element("p", textwrap.dedent(text[key].strip("\n"))))
            for key, name in (("dense", "dense"), ("recovered", "after pruning and recovery"))
        ]
        cards.append(element("div", element("h3", text["prompt"]), element("div", *sides, class_="pair"), class_="generation"))
    return section("Generated text", "The same prompt continued by the dense and by the final model.", *cards)


def recipe_section(report: Mapping[str, Any]) -> Markup | None:
    """The recipe that won, one value a row."""
    recipe = (report.get("search") or {}).get("recipe")
    if not recipe:
        return None
    rows = [element("tr", element("th", element("code", name)), element("td", value_text(value))) for name, value in _flat(recipe)]
    half = (len(rows) + 1) // 2
    tables = [element("table", element("tbody", *part), class_="recipe") for part in (rows[:half], rows[half:]) if part]
    return section("Recipe", "The settings of the best trial.", element("div", *tables, class_="pair recipes"))


def protocol_section(report: Mapping[str, Any]) -> Markup:
    """Everything needed to run this again."""
    model = report["model"]
    rows: list[tuple[str, Any]] = [
        ("command", element("code", report["command"])),
        ("seed", str(report["seed"])),
        ("plan", element("code", model["plan_hash"])),
        ("hardware", report["hardware"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ("created", report["created"]),
    ]
    if report.get("protocol"):
        rows.insert(3, ("perplexity", report["protocol"]))
    if report.get("seeds"):
        rows[1] = ("seeds", ", ".join(f"{name} {seed}" for name, seed in report["seeds"].items()))
    card, parts = report.get("data"), []
    if card:
        rows.insert(3, ("leaks", card["leaks"]))
        parts = [element("h3", "Text"), _text_table(CARD_COLUMNS, card_rows(card))]
    return section("Protocol", "Everything needed to run this again.", _facts(rows), *parts)


def _facts(rows: Sequence[tuple[str, Any]]) -> Markup:
    return element("table", element("tbody", *(element("tr", element("th", n), element("td", v)) for n, v in rows)), class_="facts")


def _text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table of texts, the first column its labels."""
    body = [element("tr", element("th", label), *(element("td", text) for text in texts)) for label, *texts in rows]
    first = element("thead", element("tr", *(element("th", name) for name in head)))
    return _scrolled(element("table", first, element("tbody", *body)))


def _scrolled(table: Markup) -> Markup:
    return element("div", table, class_="scroll")


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
