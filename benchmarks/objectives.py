"""Which objective of a search ranks recipes as they end: rank correlations with the model after refit and recovery, on unseen domains.

    python benchmarks/objectives.py --json objectives.json --kept real_models.json.kept --recipes 60

Recipes are the plain ones and random points of the search space. Each is measured by everything that a search could judge it by (as pruned,
after the local refit that trials have, after the sequential refit; the text's loss or the divergence from the dense model; the squared
error that the local refit leaves, from Gram matrices alone) and then refitted and recovered: **the yardstick is the mean log-perplexity on
domains that nothing has read**. A killed run goes on with the recipe it was at.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from real_models import Setting, add_options
from real_text import UNSEEN
from scipy.stats import bootstrap, spearmanr

from adapruner.files.atomic import write_atomically
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan, part_weights
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.configuration import Ridge
from adapruner.recovery.local import local_equations
from adapruner.recovery.post_pruning import reconstructed
from adapruner.recovery.solve import Solver
from adapruner.search.config import ObjectiveConfig, SearchConfig
from adapruner.search.space import SearchSpace
from adapruner.search.trial_value import Objective

YARDSTICK = "recovered, unseen domains"


def recipes(space: SearchSpace, problem: PruningProblem, count: int, seed: int) -> list[Recipe]:
    """Every metric alone, then random points."""
    pool, found = problem.calibration, []
    for metric in space.metrics:
        found.append(space.recipe(space.point(pool, metric)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    while len(found) < count:
        found.append(space.suggest(study.ask(), pool))
    return found[:count]


def objectives(setting: Setting, problem: PruningProblem) -> dict[str, Callable[[PruningPlan, Recipe], float]]:
    """Everything that can be known of a plan without the sequential refit, by name."""
    model, windows, ridge = setting.model, setting.data.search_windows, setting.reconstruction.in_trials
    found: dict[str, Callable[[PruningPlan, Recipe], float]] = {}
    for measure in ("nll", "kl"):
        for refit, words in ((None, "pruned"), (ridge, "local refit")):
            config = SearchConfig(objective=ObjectiveConfig(measure), chunks=1)
            judge = Objective(model, problem, windows, config, refit)

            def value(plan: PruningPlan, recipe: Recipe, judge: Objective = judge) -> float:
                *_, part = judge.of_plan(model, plan, recipe)
                return part.value

            found[f"{measure}, {words}"] = value
    found["squared error of the local refit, relative"] = lambda plan, recipe: left_by_refit(model, problem, plan, recipe, ridge)
    return found


@torch.no_grad()
def left_by_refit(model: Any, problem: PruningProblem, plan: PruningPlan, recipe: Recipe, ridge: Ridge) -> float:
    """Sum over groups of ||W x - W' x'||^2 / ||W x||^2 on the pool, W' the local refit: from Gram matrices, without running the model."""
    assert problem.grams is not None
    weights, total = part_weights(problem, recipe), 0.0
    for group in problem.structure.groups:
        if plan.keeps_all(group):
            continue
        moments, weight = problem.grams.moments(group.name, weights), model.get_submodule(group.output.module).weight.float()
        kept = group.channels_of(plan.kept[group.name])
        equations = local_equations(group, plan.kept[group.name], moments, weight, None, None)
        change, _ = Solver(ridge, precision=torch.float32).solve(equations, weight[:, kept])
        away = -weight.clone()
        away[:, kept] = change
        gram = moments.gram.to(weight.device)
        total += float((away @ gram * away).sum() / (weight @ gram * weight).sum())
    return total


def measured(setting: Setting, problem: PruningProblem, judges: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """One recipe by every objective, and by the yardstick; seconds beside."""
    plan, values, seconds = make_plan(problem, recipe), {}, {}
    for name, judge in judges.items():
        started = time.monotonic()
        values[name] = judge(plan, recipe)
        seconds[name] = time.monotonic() - started
    started, post = time.monotonic(), setting.post_pruning(recovers=False)
    with reconstructed(setting.model, problem, plan, post):
        refit = time.monotonic() - started
        for measure in ("nll", "kl"):
            started = time.monotonic()
            values[f"{measure}, sequential refit"] = setting.judges[measure].of_model(setting.model)
            seconds[f"{measure}, sequential refit"] = refit + time.monotonic() - started
        refitted = setting.perplexities(setting.model)
        started = time.monotonic()
        recovered = setting.perplexities(setting.recover(copy.deepcopy(setting.model)))
        seconds[YARDSTICK] = time.monotonic() - started
    values["sequential refit, unseen domains"] = mean_log(refitted)
    values[YARDSTICK] = mean_log(recovered)
    return {"recipe": recipe.to_dict(), "plan": plan.hash, "values": values, "seconds": seconds}


def mean_log(perplexities: dict[str, float]) -> float:
    """Over the unseen domains."""
    return statistics.fmean(math.log(perplexities[domain]) for domain in UNSEEN)


def correlations(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float, float, float, float]]:
    """(objective, Spearman's rho with the yardstick, low and high of its 95 % bootstrap interval, rho among the best third)."""
    truth = torch.tensor([row["values"][YARDSTICK] for row in rows]).numpy()
    best = truth.argsort()[: max(3, len(rows) // 3)]
    for name in rows[0]["values"]:
        found = torch.tensor([row["values"][name] for row in rows]).nan_to_num(1e9, 1e9, 1e9).numpy()
        rho = float(spearmanr(found, truth).statistic)

        def statistic(x: Any, y: Any) -> float:
            return float(spearmanr(x, y).statistic)

        spread = bootstrap((found, truth), statistic, paired=True, vectorized=False, n_resamples=500, method="percentile", rng=0)
        low, high = spread.confidence_interval
        yield name, rho, float(low), float(high), float(spearmanr(found[best], truth[best]).statistic)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, the best objective first."""
    lines = [f"| objective ({len(rows)} recipes) | rank correlation | 95 % | among the best third | seconds |", "|---|---|---|---|---|"]
    for name, rho, low, high, best in sorted(correlations(rows), key=lambda row: -row[1]):
        took = [row["seconds"][name] for row in rows if name in row["seconds"]]
        seconds = f"{statistics.median(took):.1f}" if took else ""
        lines.append(f"| {name} | {rho:.2f} | {low:.2f} to {high:.2f} | {best:.2f} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--kept", type=Path, help="folder of statistics that real_models kept")
    parser.add_argument("--recipes", type=int, default=60)
    options = parser.parse_args()
    setting = {name: str(value) for name, value in vars(options).items() if name not in ("json", "kept", "budgets", "seeds", "recipes")}
    content = json.loads(options.json.read_text()) if options.json.exists() else {"setting": setting}
    if content["setting"] != setting:
        raise SystemExit(f"--json: expected recipes under the same settings, got {content['setting']}; give them again, or another file")
    for budget in options.budgets:
        for seed in options.seeds:
            rows = content.setdefault(f"{budget} seed {seed}", [])
            if len(rows) < options.recipes:
                fill(rows, Setting(seed, options), budget, options, lambda: write_atomically(options.json, json.dumps(content) + "\n"))
            print(f"{budget:.0%}, seed {seed}\n\n{table(rows)}\n", flush=True)


def fill(rows: list[dict[str, Any]], setting: Setting, budget: float, options: argparse.Namespace, keep: Callable[[], None]) -> None:
    """Measures the recipes that are missing, and keeps each as it comes."""
    problem = setting.problem(budget)
    judges, windows = objectives(setting, problem), setting.data.search_windows
    setting.judges = {
        measure: Objective(setting.model, problem, windows, SearchConfig(objective=ObjectiveConfig(measure)), None)
        for measure in ("nll", "kl")
    }
    for number, recipe in enumerate(recipes(SearchSpace(), problem, options.recipes, setting.seed)):
        if number >= len(rows):
            rows.append(measured(setting, problem, judges, recipe))
            keep()
            print(f"{budget:.0%} recipe {number}: {rows[-1]['values'][YARDSTICK]:.4f}", flush=True)


if __name__ == "__main__":
    main()
