"""The page's part about real models, from the cells of ``real_models.py``."""

from __future__ import annotations

import math
import statistics
from typing import Any

OURS = "adapruner"
BEST_FIXED = "best fixed"
OURSELVES = (OURS, BEST_FIXED)
#: Searches that lack one thing, as ``search_arms.py`` calls them.
ABLATIONS = ("data only", "metric only", "one after the other", "random search", "no allocation", "judged as cut")
DENSE = "dense"
STAGES = ("pruned", "reconstructed", "recovered")
Cells = list[dict[str, Any]]


def real_models(record: dict[str, Any]) -> list[str]:
    """All of it: what was measured, a table of perplexity for each budget, the stages, the tasks."""
    cells: Cells = record["cells"]
    perplexity = [c for c in cells if "domain" in c]
    domains = list(dict.fromkeys(c["domain"] for c in perplexity))
    picture = "![Perplexity above the dense model's](real_models.png)"
    parts = ["## On a real language model", picture, words(record["setting"]), measured(cells)]
    for budget in sorted({c["budget"] for c in perplexity if c["method"] != DENSE}):
        here = [c for c in perplexity if c["budget"] == budget or c["method"] == DENSE]
        parts += [f"### {budget:.0%} of the block parameters removed", domain_table(here, domains), stage_table(here)]
    if {c["method"] for c in perplexity} & set(ABLATIONS):
        parts += ["### Does the joint search pay?", ABLATION_WORDS, ablation_table(perplexity)]
    tasks = [c for c in cells if "task" in c]
    if tasks:
        how = f"{record['tasks']}. Accuracy ± standard error of the task, one seed."
        parts += ["### Zero-shot tasks, after recovery", how, task_table(tasks)]
    return parts


def words(setting: dict[str, Any]) -> str:
    """What the figures are of."""
    model = setting["model"].rpartition("/")[2].removesuffix(".gguf")
    return (
        f"`python benchmarks/real_models.py`: {model}, {setting['dtype']}, windows of {setting['seq_len']} tokens; figures in "
        f"[real_models.json](real_models.json). Calibration, search, refit and recovery on wiki, books and rust in equal parts "
        f"({setting['samples']} windows scored and refitted on, {setting['search_samples']} judged on in {setting['trials']} trials, "
        f"{setting['recovery_steps']} LoRA steps of 8 windows); **nothing has read the domains with a star** but the last measurement, "
        f"{setting['test_windows']} windows of each. Every distance is to *the dense model after the same recovery*: tuning on plain text "
        "alone changes an instruct model. ± is the sample standard deviation over seeds; where there is none it is one seed. The "
        "baselines are their authors' code unit for unit (`configs/baselines`); *best fixed* is the plain recipe (a single metric, in one "
        "global ranking) that the search itself found best before its sampler began. The refit of these figures was held by 0.01 "
        "of the mean over channels (`ridge: 0.01`, `relative_to: mean`); today each projection chooses, [which is better](refit.md)."
    )


def measured(cells: Cells) -> str:
    """What there is by now and where it was measured, so that a page of a run that is not at its end says so."""
    seeds: dict[float, set[int]] = {}
    for cell in cells:
        if cell["method"] != DENSE:
            seeds.setdefault(cell["budget"], set()).add(cell["seed"])
    said = [f"{budget:.0%} removed (seeds {', '.join(map(str, sorted(found)))})" for budget, found in sorted(seeds.items())]
    kinds = (("perplexities", "domain"), ("accuracies", "task"))
    where = [(device, name, sum(kind in c and c["device"] == device for c in cells)) for device in _devices(cells) for name, kind in kinds]
    on = "; ".join(f"{count} {name} on {device}" for device, name, count in where if count)
    return f"Measured: {'; '.join(said)}. {on}."


def _devices(cells: Cells) -> list[str]:
    return sorted({c["device"] for c in cells}, reverse=True)


def _of(cells: Cells, **key: Any) -> Cells:
    return [c for c in cells if key.items() <= c.items()]


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation; four figures are enough of a large one."""
    digits = 0 if statistics.fmean(values) >= 1000 else 1
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _geometric(cells: Cells) -> list[float]:
    """Per seed, the geometric mean of the perplexities."""
    seeds = sorted({c["seed"] for c in cells})
    return [math.exp(statistics.fmean(math.log(c["perplexity"]) for c in cells if c["seed"] == seed)) for seed in seeds]


def distances(cells: Cells, method: str, unseen: bool, stage: str = "recovered") -> list[float]:
    """Per seed, in per cent, the mean log-perplexity above that of the dense model after the same recovery under the same seed."""
    key = {"unseen": unseen}
    reference = {c["seed"]: c for c in _of(cells, method=DENSE, stage="recovered")}
    mine = _of(cells, method=method, stage=stage, **key)
    found = []
    for seed in sorted({c["seed"] for c in mine} & set(reference)):
        ours, dense = (_geometric(_of(part, seed=seed)) for part in (mine, _of(cells, method=DENSE, stage="recovered", **key)))
        found.append(100 * (ours[0] / dense[0] - 1))
    return found


def methods_in_order(cells: Cells) -> list[str]:
    """By the distance after recovery on unseen domains, the nearest first."""
    methods = {c["method"] for c in cells} - {DENSE, *ABLATIONS}
    return sorted(methods, key=lambda method: (statistics.fmean(distances(cells, method, True)), method))


def _name(method: str) -> str:
    return f"**{method}**" if method == OURS else f"*{method}*" if method in OURSELVES else method


def domain_table(cells: Cells, domains: list[str]) -> str:
    """After recovery: every domain, and the distance to the dense model."""
    unseen = {c["domain"] for c in cells if c["unseen"]}
    head = [*(f"{d}*" if d in unseen else d for d in domains), "above dense, unseen", "above dense, calibrated"]
    lines = [f"| after recovery | seeds | {' | '.join(head)} |", "|---|---" + "|---" * len(head) + "|"]
    for label, stage in (("dense, as it is", "dense"), ("dense, after the same recovery", "recovered")):
        mine = _of(cells, method=DENSE, stage=stage)
        values = [spread([c["perplexity"] for c in _of(mine, domain=d)]) for d in domains]
        lines.append(f"| {label} | {len({c['seed'] for c in mine})} | " + " | ".join([*values, "", ""]) + " |")
    for method in methods_in_order(cells):
        mine = _of(cells, method=method, stage="recovered")
        values = [spread([c["perplexity"] for c in _of(mine, domain=d)]) for d in domains]
        away = [f"{spread(distances(cells, method, kind))} %" for kind in (True, False)]
        lines.append(f"| {_name(method)} | {len({c['seed'] for c in mine})} | " + " | ".join([*values, *away]) + " |")
    return "\n".join(lines)


def short_table(cells: Cells) -> str:
    """For a page that has room for one table: how far above the dense model after the same recovery, unseen domains, every budget."""
    cells = [c for c in cells if "domain" in c]
    budgets = sorted({c["budget"] for c in cells if c["method"] != DENSE})
    of = {budget: [c for c in cells if c["budget"] == budget or c["method"] == DENSE] for budget in budgets}
    methods = sorted(
        {c["method"] for c in cells} - {DENSE, *ABLATIONS},
        key=lambda method: statistics.fmean(math.log(statistics.fmean(distances(of[b], method, True))) for b in budgets),
    )
    lines = [f"| above the dense model | {' | '.join(f'{b:.0%} removed' for b in budgets)} |", "|---" + "|---" * len(budgets) + "|"]
    for method in methods:
        values = [f"{spread(distances(of[budget], method, True))} %" for budget in budgets]
        lines.append(f"| {_name(method)} | {' | '.join(values)} |")
    return "\n".join(lines)


def stage_table(cells: Cells) -> str:
    """Geometric means over the unseen and over the calibrated domains, stage by stage."""
    head = [f"{stage}, {kind}" for kind in ("unseen", "calibrated") for stage in STAGES]
    lines = [f"| stage by stage | {' | '.join(head)} |", "|---" + "|---" * len(head) + "|"]
    for method in methods_in_order(cells):
        values = [spread(_geometric(_of(cells, method=method, stage=stage, unseen=unseen))) for unseen in (True, False) for stage in STAGES]
        lines.append(f"| {_name(method)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


ABLATION_WORDS = (
    "Perplexity after recovery beside the joint search's under the same seed and budget, in per cent (logarithmic; geometric mean over "
    "domains; ± over seeds). **Above 0 the joint search is better.** All have as many trials; *best fixed* is the best of those that each "
    "begins with."
)


def ablation_table(cells: Cells) -> str:
    """Every search that lacks something, and the plain recipe, beside the joint search: a column for each budget and kind of domain."""
    budgets = sorted({c["budget"] for c in cells if c["method"] in ABLATIONS})
    columns = [(budget, unseen) for budget in budgets for unseen in (True, False)]
    head = [f"{budget:.0%}, {'unseen' if unseen else 'calibrated'}" for budget, unseen in columns]
    lines = [f"| beside the joint search | {' | '.join(head)} |", "|---" + "|---" * len(head) + "|"]
    present = {c["method"] for c in cells}
    for method in (m for m in (BEST_FIXED, *ABLATIONS) if m in present):
        lines.append(f"| {_name(method)} | " + " | ".join(beside_ours(cells, method, *column) for column in columns) + " |")
    return "\n".join(lines)


def beside_ours(cells: Cells, method: str, budget: float, unseen: bool) -> str:
    """Mean and spread over seeds of 100 times the log-perplexity above ours, recovered; empty where no seed has both."""
    key = {"budget": budget, "unseen": unseen, "stage": "recovered"}
    theirs, ours = _of(cells, method=method, **key), _of(cells, method=OURS, **key)
    seeds = sorted({c["seed"] for c in theirs} & {c["seed"] for c in ours})
    away = [100 * math.log(_geometric(_of(theirs, seed=seed))[0] / _geometric(_of(ours, seed=seed))[0]) for seed in seeds]
    if not away:
        return ""
    return f"{statistics.fmean(away):+.1f}" + (f" ± {statistics.stdev(away):.1f}" if len(away) > 1 else "")


def task_table(cells: Cells) -> str:
    """Accuracy and, where a task has it, the one normalised by length."""
    tasks = list(dict.fromkeys(c["task"] for c in cells))
    lines = [f"| removed | method | {' | '.join(tasks)} | mean |", "|---|---" + "|---" * len(tasks) + "|---|"]
    order = {"dense": 0, "recovered": 1}
    rows = sorted({(c["budget"], c["method"], c["stage"]) for c in cells}, key=lambda r: (r[0], order[r[2]], r[1] != OURS, r[1]))
    for budget, method, stage in rows:
        mine = {c["task"]: c for c in _of(cells, budget=budget, method=method, stage=stage)}
        values = [_accuracy(mine[task]) for task in tasks]
        label = {"dense": "dense, as it is", "recovered": "dense, after the same recovery"}[stage] if method == DENSE else _name(method)
        mean = 100 * statistics.fmean(mine[task]["acc"] for task in tasks)
        lines.append(f"| {budget:.0%} | {label} | {' | '.join(values)} | {mean:.1f} |")
    return "\n".join(lines)


def _accuracy(cell: dict[str, Any]) -> str:
    normalised = f" ({100 * cell['acc_norm']:.1f} normalised)" if cell.get("acc_norm") is not None else ""
    return f"{100 * cell['acc']:.1f} ± {100 * cell['stderr']:.1f}{normalised}"
