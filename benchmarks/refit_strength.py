"""How near to the kept weights a refit should stay: perplexity behind it, before any training, on a real language model.

    python benchmarks/refit_strength.py --json refit_strength.json --kept real_models.json.kept

Our plans of :mod:`real_models` (plans that it kept are taken), refitted on so many windows under every setting; with ``--method`` those of
a published method, which need no search, so that another model is quickly asked. A killed run goes on with the cell it was at.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_models import METHODS, OURS, Setting, add_options
from real_record import DENSE, Record
from real_text import CALIBRATED, UNSEEN

from adapruner.recovery.post_pruning import PostPruning, pruned_only, reconstructed

#: Stage -> the refit's settings; ``None`` leaves it out.
SETTINGS: dict[str, dict[str, Any] | None] = {
    "pruned": None,
    "mean 0.01": {"ridge": 0.01, "relative_to": "mean"},
    "mean 0.1": {"ridge": 0.1, "relative_to": "mean"},
    "channel 0.02": {"ridge": 0.02},
    "channel 0.1": {"ridge": 0.1},
    "channel 0.5": {"ridge": 0.5},
    "channel 2": {"ridge": 2.0},
    "chosen among 0.02, 0.1, 0.5, 2": {},
}


def measure(setting: Setting, record: Record, budget: float, options: argparse.Namespace) -> None:
    """The settings for one budget."""
    seed, model, method, windows = setting.seed, setting.model, options.method, options.windows
    if not record.has(method=DENSE, seed=seed):
        record.add_stages(0.0, DENSE, seed, [("dense", setting.perplexities(model))])
    problem = setting.problem(budget, grams=method not in METHODS)
    plan = setting.plan(problem, method)
    for name in options.settings:
        values = SETTINGS[name]
        stage = name if values is None else f"{name}, {windows} windows"
        if record.has(budget=budget, method=method, seed=seed, stage=stage):
            continue
        if values is None:
            entered = pruned_only(model, problem, plan)
        else:
            how = setting.fitting(replace(setting.reconstruction, shared_gib=0.0, **values))
            entered = reconstructed(model, problem, plan, PostPruning.of_data(setting.refit_data(windows), how, None))
        with entered:
            record.add_stages(budget, method, seed, [(stage, setting.perplexities(model))])


def table(measured: list[dict[str, Any]], budgets: list[float]) -> str:
    """Markdown: perplexity of every domain, and the change of the geometric means against the first refit."""
    lines = ["| removed, refit | " + " | ".join([*CALIBRATED, *(f"{d}*" for d in UNSEEN)]) + " | calibrated | unseen |", "|---" * 8 + "|"]
    for budget in budgets:
        stages = list(dict.fromkeys(c["stage"] for c in measured if c["budget"] == budget))
        first: dict[str, float] = {}
        for stage in stages:
            cells = [c for c in measured if (c["budget"], c["stage"]) == (budget, stage)]
            values = {d: _mean([c["perplexity"] for c in cells if c["domain"] == d]) for d in (*CALIBRATED, *UNSEEN)}
            means = {"calibrated": _mean([values[d] for d in CALIBRATED]), "unseen": _mean([values[d] for d in UNSEEN])}
            first = first or (means if stage != "pruned" else {})
            changes = [f"{100 * (means[k] / first[k] - 1):+.1f} %" if first and means != first else "" for k in means]
            lines.append(f"| {budget:.0%}, {stage} | " + " | ".join([*(f"{v:.1f}" for v in values.values()), *changes]) + " |")
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--kept", type=Path, help="folder of plans and statistics that real_models kept")
    parser.add_argument("--windows", type=int, default=144, help="of 128 tokens, for the refit")
    parser.add_argument("--method", default=OURS, choices=[OURS, *METHODS], metavar="METHOD", help="whose units; of real_models")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING")
    options = parser.parse_args()
    record = Record(options)
    for seed in options.seeds:
        setting = Setting(seed, options)
        for budget in options.budgets:
            measure(setting, record, budget, options)
    print(table(record.cells, options.budgets))


if __name__ == "__main__":
    main()
