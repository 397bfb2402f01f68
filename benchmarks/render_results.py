"""Writes results.json, results.md and real_models.png in docs/, and README's table, from what real_models.py, quality.py and trial_cost.py
wrote.

    python benchmarks/render_results.py --real-models docs/real_models.json
    python benchmarks/render_results.py --quality new.json ... --whole-test new_whole.json ...

Every figure of the page comes from these files and from the docs/results.json that is there, whose cells stand unless a file has them
anew; the words around them stand in this file, in ``real_tables.py`` and in ``docs/results-remarks.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pages import between_markers
from real_chart import draw
from real_tables import ABLATIONS, real_models, short_table

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- real models: written by benchmarks/render_results.py -->", "<!-- end of real models -->"
DOCS = Path(__file__).parents[1] / "docs"
STAGES = ("pruned", "reconstructed", "recovered")
OURS = "adapruner"
OURSELVES = (OURS, "best fixed", *ABLATIONS, "adapruner, fresh second look")

Cells = list[dict[str, Any]]


def read(file: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def merge(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All cells of all records, ordered; of a cell that stands twice the first counts."""
    merged: dict[str, Any] = {"cells": [], "notes": [], "dense": {}, "settings": []}
    seen = set()
    for record in records:
        for cell in record["cells"]:
            key = (cell["model"], cell["budget"], cell["method"], cell["seed"])
            if key not in seen:
                seen.add(key)
                merged["cells"].append(cell)
        merged["notes"] += [n for n in record["notes"] if n not in merged["notes"]]
        merged["dense"] = record["dense"] | merged["dense"]
        settings = record.get("settings") or [record["setting"]]
        merged["settings"] += [s for s in settings if s not in merged["settings"]]
    merged["cells"].sort(key=lambda c: (c["model"], c["budget"], c["method"], c["seed"]))
    return merged


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation; a single value says so by having none."""
    mean = statistics.fmean(values)
    digits = 1 if mean >= 1000 else 2
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def by_seed(cells: Cells, method: str, stage: str) -> dict[int, float]:
    """Seed -> perplexity of one method at one stage."""
    return {c["seed"]: c[f"perplexity_{stage}"] for c in cells if c["method"] == method}


def differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Paired over the seeds that both have: 100 log(ours / theirs), per cent of perplexity, below 0 where ours is better."""
    return [100 * math.log(ours[s] / theirs[s]) for s in sorted(set(ours) & set(theirs))]


def best_baseline(cells: Cells, stage: str) -> str | None:
    """The published method (any calibration, any allocation) that ours fares worst against, on the seeds that it has."""
    ours = by_seed(cells, OURS, stage)
    paired = {m: differences(ours, by_seed(cells, m, stage)) for m in {c["method"] for c in cells} - set(OURSELVES)}
    means = {m: statistics.fmean(d) for m, d in paired.items() if d}
    return max(means, key=lambda m: (means[m], m)) if means else None


def verdicts(cells: Cells) -> list[dict[str, Any]]:
    """One row a model, budget and stage: ours, the best baseline, and the paired difference between them."""
    rows = []
    for model, budget in sorted({(c["model"], c["budget"]) for c in cells}):
        here = [c for c in cells if (c["model"], c["budget"]) == (model, budget)]
        for stage in STAGES:
            rival = best_baseline(here, stage)
            if rival is None:
                continue
            ours, theirs = by_seed(here, OURS, stage), by_seed(here, rival, stage)
            paired = differences(ours, theirs)
            mean = statistics.fmean(paired)
            deviation = statistics.stdev(paired) if len(paired) > 1 else None
            seeds = sorted(set(ours) & set(theirs))
            rows.append(
                {
                    "model": model,
                    "budget": budget,
                    "stage": stage,
                    "seeds": seeds,
                    "ours": [ours[s] for s in seeds],
                    "rival": rival,
                    "theirs": [theirs[s] for s in seeds],
                    "difference_percent": mean,
                    "difference_deviation": deviation,
                    "outside": None if deviation is None else abs(mean) > deviation,
                }
            )
    return rows


def verdict_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | removed | stage | seeds | adapruner | best baseline | which | difference | beyond its spread |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        deviation = r["difference_deviation"]
        sign = f"{r['difference_percent']:+.1f} %" + ("" if deviation is None else f" ± {deviation:.1f}")
        beyond = {True: "yes", False: "no", None: "one seed"}[r["outside"]]
        size = [r["model"], f"{r['budget']:.0%}", r["stage"], str(len(r["seeds"]))]
        cells = [*size, spread(r["ours"]), spread(r["theirs"]), r["rival"], sign, beyond]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def method_table(cells: Cells) -> str:
    """All methods of one model and budget, by what they reach in the end."""
    methods = {c["method"] for c in cells}
    final = {m: statistics.fmean(by_seed(cells, m, "recovered").values()) for m in methods}
    lines = ["| method | seeds | pruned | reconstructed | recovered |", "|---|---|---|---|---|"]
    for method in sorted(methods, key=lambda m: (final[m], m)):
        columns = [spread(list(by_seed(cells, method, s).values())) for s in STAGES]
        name = f"**{method}**" if method == OURS else f"*{method}*" if method in OURSELVES else method
        lines.append(f"| {name} | {len(by_seed(cells, method, 'pruned'))} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def cost_table(cost: dict[str, Any]) -> str:
    lines = ["| | demo | larger |", "|---|---|---|"]
    rows = {
        "parameters": ("parameters", "{:,}"),
        "trials timed: ours / naive / naive over the pool": (None, ""),
        "one trial, ours, statistics shared out over 48 (s)": ("seconds", "{:.2f}"),
        "one trial, naive (s)": ("naive_seconds", "{:.2f}"),
        "one trial, naive over the pool (s)": ("naive_pool_seconds", "{:.2f}"),
        "speed-up over naive": ("speedup_over_naive", "{:.1f}"),
        "the same, the naive way's graph left out": ("speedup_over_naive_without_graph", "{:.1f}"),
        "speed-up over naive over the pool": ("speedup_over_naive_pool", "{:.1f}"),
        "most that any way could reach: naive over bare forward": ("ceiling", "{:.1f}"),
        "trial against bare forward": ("overhead_over_masked_forward", "{:.3f}"),
        "statistics, once (s)": ("seconds_statistics", "{:.1f}"),
        "same units as the naive pool": ("same_units", "{}"),
        "evaluation that the median rule would spare": ("early_stopping_saves", "{:.0%}"),
    }
    for title, (key, form) in rows.items():
        shown = []
        for name in ("demo", "larger"):
            record = cost.get(name)
            if record is None:
                shown.append("not measured")
            elif key == "ceiling":
                bare = (record["seconds"] - record["seconds_statistics"]) / record["overhead_over_masked_forward"]
                shown.append(form.format(record["naive_seconds"] / bare))
            elif key is None:
                shown.append(f"{record['our_trials_timed']} / {record['naive_trials_timed']} / {record['naive_pool_trials_timed']}")
            else:
                value = record[key] / record["trials"] if key.endswith("seconds") else record[key]
                shown.append(form.format(value))
        lines.append(f"| {title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def whole_test(record: dict[str, Any]) -> list[str]:
    """The part about all held-out windows; nothing where these were not measured."""
    if not record["cells"]:
        return []
    rows = verdicts(record["cells"])
    won = sum(r["difference_percent"] < 0 for r in rows)
    clear = sum(r["difference_percent"] < 0 and r["outside"] is True for r in rows)
    dense = ", ".join(f"{name} {value:.2f}" for name, value in sorted(record["dense"].items()))
    words = (
        "The 48 windows above are the beginning of the held-out text, a few documents, and the same for every seed: the spread over seeds "
        "does not hold what a choice of text does. The same plans, of ours and of the baselines that were strongest above, on all 162 "
        f"windows (dense: {dense}): below the best baseline in {won} of {len(rows)} cells, in {clear} beyond the spread."
    )
    return [f"### On all of the held-out text\n\n{words}", verdict_table(rows)]


def render(record: dict[str, Any], whole: dict[str, Any], cost: dict[str, Any], remarks: str, real: list[str]) -> str:
    cells = record["cells"]
    rows = verdicts(cells)
    won = sum(r["difference_percent"] < 0 for r in rows)
    clear = sum(r["difference_percent"] < 0 and r["outside"] is True for r in rows)
    parts = [
        "# Results",
        "Written by `python benchmarks/render_results.py`; the figures are in [real_models.json](real_models.json) and "
        "[results.json](results.json).",
        *real,
        "## On models of our own, trained on documentation",
        "Perplexity of held-out documentation of the standard library, windows of 128 tokens; what is removed is a fraction of the "
        "parameters of attention and FFN. `in` and `out` say whether a baseline is calibrated on text of the test's kind or on five other "
        "sources; `uniform` and `global` how it shares the budget over layers. Every method has the same pool of samples, the same search "
        "split (the baselines have no use for it), the same refit of the output projections and the same short LoRA recovery. *best fixed* "
        "is the plain recipe (a single metric, in one global ranking) that the search itself found best before its sampler began. "
        "The refit was held by 0.01 of the mean over "
        "channels (the commands below with `--relative-to mean`). ± is the sample standard deviation over seeds; "
        "a seed draws samples, splits, adapters and the sampler's numbers.",
        "Dense: " + ", ".join(f"{name} {value:.2f}" for name, value in sorted(record["dense"].items())) + ". "
        "`demo` has 4.0 million parameters, `larger` 7.3 million in 16 layers (`benchmarks/train_larger.py`).",
        f"### Ours against the best baseline\n\nBelow it in {won} of {len(rows)} cells, in {clear} of them by more than the spread of the "
        "paired difference (in per cent of perplexity, logarithmic). The best baseline is chosen anew in each cell, after the fact: the "
        "one that ours fares worst against, on the seeds that it was measured with.",
        verdict_table(rows),
        *whole_test(whole),
        remarks,
    ]
    for model, budget in sorted({(c["model"], c["budget"]) for c in cells}):
        here = [c for c in cells if (c["model"], c["budget"]) == (model, budget)]
        parts += [f"### {model}, {budget:.0%} removed", method_table(here)]
    parts += ["## What a trial costs", cost_table(cost), COST_WORDS]
    commands = sorted({s["command"] for s in [*record["settings"], *whole["settings"]]})
    parts += ["## Commands", "\n".join(f"- `{c}`" for c in commands)]
    return "\n\n".join(p for p in parts if p) + "\n"


COST_WORDS = (
    "All three ways ran in turns on one CPU thread of a busy two-core machine: the ratios count, not the seconds. The aims were 5 and "
    "30 times; the second is nearly met on the larger model, the first is out of reach at this size of search split without stopping "
    "early: even a trial that costs nothing but its bare forward pass would be only so many times cheaper as the table says. By "
    "arithmetic, with P parameters: ours costs the evaluation of 4096 tokens at the pruned width (about 4500 P operations) and a 48th of "
    "the statistics (160 samples, forward, backward, and one product for the second order: 2600 P); the naive way adds ten samples' "
    "forward and backward passes (7700 P) to the same evaluation. More trials share the statistics further, and the median rule spares "
    "part of the evaluation."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", nargs="*", type=Path, default=[], help="cells measured anew")
    parser.add_argument("--whole-test", nargs="*", type=Path, default=[], help="the same with --test-windows 0")
    parser.add_argument("--trial-cost", type=Path, help="measured anew")
    parser.add_argument("--real-models", type=Path, default=DOCS / "real_models.json", help="what real_models.py wrote")
    parser.add_argument("--remarks", type=Path, default=DOCS / "results-remarks.md", help="text below the first table of our own models")
    parser.add_argument("--out", type=Path, default=DOCS)
    arguments = parser.parse_args()
    before = read(DOCS / "results.json")
    record = merge([*map(read, arguments.quality), before])
    whole = merge([*map(read, arguments.whole_test), before["whole_test"]])
    cost = read(arguments.trial_cost) if arguments.trial_cost else before["trial_cost"]
    remarks = arguments.remarks.read_text().strip() if arguments.remarks.exists() else ""
    found = {**record, "trial_cost": cost, "verdicts": verdicts(record["cells"])}
    found["whole_test"] = {**whole, "verdicts": verdicts(whole["cells"])}
    real: list[str] = []
    if arguments.real_models.exists():
        measured = read(arguments.real_models)
        real = real_models(measured)
        draw(measured["cells"], arguments.out / "real_models.png")
        page = between_markers(README.read_text(encoding="utf-8"), BEGIN, END, short_table(measured["cells"]))
        README.write_text(page, encoding="utf-8")
    for name, text in (
        ("results.json", json.dumps(found, indent=1) + "\n"),
        ("results.md", render(record, whole, cost, remarks, real)),
    ):
        temporary = arguments.out / f".{name}.tmp"
        temporary.write_text(text)
        temporary.replace(arguments.out / name)


if __name__ == "__main__":
    main()
