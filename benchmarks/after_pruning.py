"""What to do with a time budget once the units are chosen: whole pipelines after the choice, at equal tokens, on a real language model.

    python benchmarks/after_pruning.py --json after_pruning.json --kept real_models.json.kept

Every pipeline reads the same number of tokens after pruning, in refit and training together, but for the published recoveries that
train nothing; seconds stand beside. Units come from :mod:`real_models` (ours, its best fixed recipe, published methods; plans that it
kept are taken), and from gates that start where ours ended. What counts is the distance: the mean over domains that nothing has read of
log-perplexity above **the dense model under the same training**. A killed run goes on with the cell it was at.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from real_models import BEST_FIXED, OURS, Setting, add_options
from real_record import DENSE, SEQ_LEN, Record
from real_text import UNSEEN

from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.problem import PruningProblem
from adapruner.recovery.post_pruning import PostPruning, pruned_only, reconstructed
from adapruner.search.gates_config import GatesConfig
from adapruner.search.learned_gates import learn_gates

GATES = "gates 60"
"""Gates of so many steps from where ours ended."""
BATCH = 8


@dataclass(frozen=True)
class Pipeline:
    """A refit on so many windows (0: none) and so many steps of LoRA."""

    refit: int
    steps: int

    @property
    def name(self) -> str:
        """What the cells call it."""
        parts = [f"refit {self.refit}"] * (self.refit > 0) + [f"LoRA {self.steps}"] * (self.steps > 0)
        return ", ".join(parts) or "no training"

    @property
    def tokens(self) -> int:
        """Read after pruning."""
        return (self.refit + BATCH * self.steps) * SEQ_LEN


def pipelines(options: argparse.Namespace) -> list[Pipeline]:
    """Those that are named; else all of the same tokens: the largest refit decides how many."""
    if options.pipelines:
        return [Pipeline(*map(int, named.split(":"))) for named in options.pipelines]
    tokens = Pipeline(max(options.refits), options.recovery_steps).tokens
    return [Pipeline(refit, (tokens // SEQ_LEN - refit) // BATCH) for refit in [0, *options.refits]]


def plan_of(setting: Setting, problem: PruningProblem, units: str) -> PruningPlan:
    """The units; gates are learned once, and kept beside the other plans."""
    if not units.startswith("gates "):
        return setting.plan(problem, units)
    steps = int(units.removeprefix("gates "))
    file = setting.kept / f"{problem.budget.pruned_fraction}-gates-{steps}.json"
    if not file.exists():
        started, plan = time.monotonic(), setting.plan(problem, OURS)
        config = GatesConfig(steps=steps, look_every=max(1, steps // 3))
        data = setting.data
        found = learn_gates(setting.model, problem, plan, recipe_from(plan), data.calibration_windows, data.search_windows, config)
        print(f"gates: {[look.held_out for look in found.looks]}, {time.monotonic() - started:.0f} s", flush=True)
        found.plan.save(file)
    return read_plan(file)


def recipe_from(plan: PruningPlan) -> Any:
    """The whole recipe that a plan records."""
    from adapruner.calibration.choice import CalibrationChoice
    from adapruner.pruning.allocation import Allocation
    from adapruner.pruning.recipe import Recipe

    parts = {**plan.recipe, "allocation": Allocation(**plan.recipe["allocation"])}
    return Recipe(**{**parts, "calibration": CalibrationChoice.from_dict(plan.recipe["calibration"])})


def through(setting: Setting, problem: PruningProblem, plan: PruningPlan, pipeline: Pipeline) -> Iterator[tuple[str, dict[str, float]]]:
    """Perplexities behind the refit, where there is one, and at the end."""
    model = setting.model
    if pipeline.refit:
        entered = reconstructed(model, problem, plan, PostPruning.of_data(setting.refit_data(pipeline.refit), setting.reconstruction, None))
    else:
        entered = pruned_only(model, problem, plan)
    with entered:
        if pipeline.refit and pipeline.steps:
            yield f"refit {pipeline.refit}", setting.perplexities(model)
        if pipeline.steps:
            yield pipeline.name, setting.perplexities(setting.recover(copy.deepcopy(model), pipeline.steps))
        else:
            yield pipeline.name, setting.perplexities(model)


def measure(setting: Setting, record: Record, budget: float, units: list[str], chosen: list[Pipeline]) -> None:
    """All units through all pipelines, and the dense model through the same training."""
    seed = setting.seed
    for steps in sorted({pipeline.steps for pipeline in chosen}):
        name = Pipeline(0, steps).name
        if not record.has(method=DENSE, seed=seed, stage=name):
            model = setting.recover(copy.deepcopy(setting.model), steps) if steps else setting.model
            record.add_stages(0.0, DENSE, seed, [(name, setting.perplexities(model))])
    problem = setting.problem(budget)
    for pipeline in chosen:
        for method in units:
            if not record.has(budget=budget, method=method, seed=seed, stage=pipeline.name):
                record.add_stages(budget, method, seed, through(setting, problem, plan_of(setting, problem, method), pipeline))


def distance(record: Record, budget: float, method: str, seed: int, pipeline: Pipeline) -> float | None:
    """Mean log-perplexity on unseen domains above the dense model's after as many steps; ``None`` where it is not measured."""

    def mean(**key: Any) -> float | None:
        found = [math.log(c["perplexity"]) for c in record.cells if key.items() <= c.items() and c["domain"] in UNSEEN]
        return statistics.fmean(found) if found else None

    own = mean(budget=budget, method=method, seed=seed, stage=pipeline.name)
    dense = mean(method=DENSE, seed=seed, stage=Pipeline(0, pipeline.steps).name)
    return None if own is None or dense is None else own - dense


def table(record: Record, options: argparse.Namespace, chosen: list[Pipeline]) -> str:
    """Markdown: a line for each units and budget, a column for each pipeline; per cent of perplexity above the dense model."""
    lines = ["| budget, units | " + " | ".join(pipeline.name for pipeline in chosen) + " |", "|---" * (len(chosen) + 1) + "|"]
    for budget in options.budgets:
        for method in options.units:
            cells = []
            for pipeline in chosen:
                found = [distance(record, budget, method, seed, pipeline) for seed in options.seeds]
                values = [100 * (math.exp(value) - 1) for value in found if value is not None]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.1f}{spread}" if values else "")
            lines.append(f"| {budget:.0%}, {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--kept", type=Path, help="folder of plans and statistics that real_models kept")
    parser.add_argument("--units", nargs="+", default=[OURS, BEST_FIXED, GATES, "flap, AL-AM", "llm-pruner, second"])
    parser.add_argument("--refits", nargs="+", type=int, default=[144, 768], help="windows of 128 tokens that refits see")
    parser.add_argument("--pipelines", nargs="+", metavar="WINDOWS:STEPS", help="these instead of all of the same tokens")
    parser.add_argument("--most-steps", type=int, default=0, help="windows of recovery are drawn for so many steps at least")
    options = parser.parse_args()
    chosen = pipelines(options)
    options.most_steps = max(options.most_steps, *(pipeline.steps for pipeline in chosen))
    record = Record(options)
    for budget in options.budgets:
        for seed in options.seeds:
            setting = Setting(seed, options)
            setting.reconstruction = replace(setting.reconstruction, shared_gib=0.0)
            measure(setting, record, budget, options.units, chosen)
    print(table(record, options, chosen))


if __name__ == "__main__":
    main()
