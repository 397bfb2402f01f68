"""Quality at equal size: adapruner, its ablations and every baseline, as pruned, reconstructed and recovered.

    python benchmarks/quality.py --json quality.json

For every model, budget (fraction of block parameters) and seed:

- baselines: each metric alone, calibrated on other text (``out``: five sources) or on text like the test's (``in``), under
  uniform widths or one global ranking; each as pruned, after the refit, and recovered after the refit;
- ``best fixed``: the best plain recipe among those the search tries first, which knows the search split as the search does;
- ours (``adapruner``) and its ablations;
- ``adapruner, fresh second look``: the same, but more candidates are looked at again, on windows that no trial has seen.

A seed draws the calibration samples, the search split, the recovery's order and initial adapters, and the sampler's numbers.
Everybody has the same pool, the same search split, the same refit and the same recovery. Perplexity is of held-out
documentation of the standard library, windows of 128 tokens. A killed run goes on with the cell it was at.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from search_arms import Arm, arms

from adapruner.calibration.choice import CalibrationChoice
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.text_source import TextSource
from adapruner.data_module import PruningDataModule
from adapruner.demo import MODEL_FOLDER
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.importance.metrics import find_metric
from adapruner.importance.statistics import collect_statistics
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.briefly import recover_briefly
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.post_pruning import PostPruning, measure_stages
from adapruner.recovery.reconstruction import ReconstructionConfig
from adapruner.recovery.streams import SharedStream
from adapruner.search.config import ObjectiveConfig, RerankConfig, SearchConfig
from adapruner.search.prepare_problem import ProblemBuilder
from adapruner.search.space import SearchSpace
from adapruner.search.study import run_search

IN_DOMAIN = "stdlib"
FRESH = "adapruner, fresh second look"
SOURCES = ("topics", "stdlib", "numpy", "pandas", "networkx", "torch")
BASELINES: dict[str, Recipe] = {
    "random": Recipe({"random": 1.0}),
    "l2": Recipe({"l2": 1.0}, reduction="mean"),
    "llm-pruner-vectorize": Recipe({"taylor_vectorize": 1.0}),
    "llm-pruner-first": Recipe({"taylor_first": 1.0}),
    "llm-pruner-second": Recipe({"taylor_second": 1.0}),
    "llm-pruner-mix": Recipe({"taylor_mix": 1.0}),
    "wanda-sp": Recipe({"wanda_sp": 1.0}),
    "flap": Recipe({"flap": 1.0}, normaliser="none", bias_compensation=True),
}
#: FLAP's own uniform widths (UL-UM).
FLAP_UNIFORM: dict[str, Any] = {"allocation": Allocation("uniform", round_to=1)}
#: FLAP's own global ranking (AL-AM): channels standardised within each layer, averaged over a head, then one threshold over all units.
FLAP_GLOBAL: dict[str, Any] = {
    "head_reduction": "mean",
    "normaliser": "standardise",
    "scope": "layer",
    "score_order": "normalise_first",
    "allocation": Allocation("gamma", per="unit", round_to=1),
}
MODELS = {"demo": str(MODEL_FOLDER), "larger": str(Path(__file__).parent / "larger_model")}


class Setting:
    """One model under one seed: its data, statistics and post_pruning."""

    def __init__(self, name: str, seed: int, arguments: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = MODELS.get(name, name)
        self.name, self.seed, self.arguments = name, seed, arguments
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.structure = trace_structure(self.model)
        self.fingerprint = fingerprint_model(self.model)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.data = self._data(arguments.search_samples)
        self.windows = self.data.calibration_windows
        self.test = self.data.evaluation_windows["test", 128]
        self.scratch = Path(arguments.cache or tempfile.mkdtemp(prefix="quality-")) / f"{name}-{seed}"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.reconstruction = ReconstructionConfig(ridge=arguments.ridge, relative_to=arguments.relative_to)
        self._summed: dict[str, Any] = {}

    def _data(self, search_samples: int) -> PruningDataModule:
        def demo(name: str, split: str) -> TextSource:
            return TextSource(name, demo=name, split=split)

        data = PruningDataModule(
            CalibrationData([demo(s, "calibration") for s in SOURCES], samples_per_source=self.arguments.samples, seq_len=128),
            SearchData([demo(IN_DOMAIN, "search")], samples=search_samples, seq_len=128),
            RecoveryData([demo(IN_DOMAIN, "recovery")], seq_len=128),
            [EvaluationSet("test", demo(IN_DOMAIN, "test"), [128], self.arguments.test_windows or None)],
            seed=self.seed,
            bos=self.arguments.bos,
        )
        data.tokenizer_object = self.tokenizer
        data.setup()
        return data

    def problem(self, budget: float) -> PruningProblem:
        """Statistics and Gram matrices are collected once and read again for the next budget."""
        needs = frozenset().union(*(r.needs for r in BASELINES.values()), *(find_metric(m).needs for m in SearchSpace().metrics))
        builder = ProblemBuilder(
            self.model, self.structure, RunData.of(self.data), Budget(budget), self.name, self.fingerprint, self.scratch, self.seed
        )
        return builder.build(builder.pools(), needs - {"summed_first", "summed_mix"}, [], grams=True)

    def calibrated(self, problem: PruningProblem, recipe: Recipe, domain: str) -> tuple[PruningProblem, Recipe]:
        """The recipe on text of one domain; gradients that are summed over samples are collected on that text alone."""
        index = self.windows.source_names.index(IN_DOMAIN)
        weights = {s: float((s == IN_DOMAIN) == (domain == "in")) for s in SOURCES}
        if not recipe.needs.isdisjoint({"summed_first", "summed_mix"}):
            if domain not in self._summed:
                rows = ((self.windows.source_index == index) == (domain == "in")).nonzero().flatten()
                summed = frozenset({"summed_first", "summed_mix"})
                self._summed[domain] = collect_statistics(self.model, self.structure, self.windows.select(rows), needs=summed).weights
            statistics = replace(problem.statistics, weights={**problem.statistics.weights, **self._summed[domain]})
            problem = replace(problem, statistics=statistics)
        return problem, replace(recipe, calibration=CalibrationChoice(weights))

    def post_pruning(self, reconstruct: bool = True, steps: int | None = None) -> PostPruning:
        """The same for everybody; ``steps`` of recovery."""
        count = self.arguments.recovery_steps if steps is None else steps

        def build(parameters: Any) -> Any:
            optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
            return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=count)

        def recover(model: Any) -> Any:
            batches, lora = self.data.train_dataloader(), LoRAConfig(r=16, alpha=32, dropout=0.0)
            return recover_briefly(model, batches, lora, steps=count, build_optimizer=build, seed=self.seed)

        return PostPruning.of_windows(
            self.windows, self.reconstruction if reconstruct else None, recover if count else None, SharedStream()
        )

    def perplexity(self, model: Any) -> float:
        """On the held-out text."""
        return evaluate_nll(model, self.test, 16).perplexity

    def stages(self, problem: PruningProblem, plan: PruningPlan, without_refit: bool = True) -> dict[str, float]:
        """Perplexity as pruned, reconstructed, recovered, and where asked recovered without the refit."""
        values = dict(measure_stages(self.model, problem, plan, self.post_pruning(), self.perplexity))
        found = {f"perplexity_{stage}": values[stage] for stage in ("pruned", "reconstructed", "recovered")}
        if without_refit:
            bare = dict(measure_stages(self.model, problem, plan, self.post_pruning(reconstruct=False), self.perplexity))
            found["perplexity_recovered_without_reconstruction"] = bare["recovered"]
        return found

    def search(self, problem: PruningProblem, arm: Arm) -> Any:
        """A whole search as the callback runs it: trials judged after the local refit, the best few looked at again."""
        options, held_out = self.arguments, arm.held_out
        windows = self._data(options.search_samples + held_out).search_windows if held_out else self.data.search_windows
        candidates = 2 * options.candidates if held_out else options.candidates
        config = SearchConfig(
            n_trials=options.trials,
            sampler=arm.sampler,  # type: ignore[arg-type]
            order=arm.order,  # type: ignore[arg-type]
            seed=self.seed,
            batch_size=16,
            objective=ObjectiveConfig(refit="always" if arm.refit else "never"),
            rerank=RerankConfig(candidates, 0.5, options.rerank_steps, held_out),
            random_sets=0,
            space=arm.space,
        )
        again = self.post_pruning(steps=options.rerank_steps)
        with tempfile.TemporaryDirectory() as folder:
            refit = self.reconstruction.in_trials if arm.refit else None
            return run_search(self.model, problem, windows, config, Path(folder), {}, refit=refit, post_pruning=again)


def cells(setting: Setting, budget: float) -> Iterator[tuple[str, Any]]:
    """(method, function that measures it) in the order of interest."""
    problem = setting.problem(budget)

    found = _found_before(setting, budget)

    def ours() -> dict[str, Any]:
        if found is not None:
            return {"rows": {"adapruner": setting.stages(problem, make_plan(problem, found), without_refit=False)}}
        outcome = setting.search(problem, Arm())
        assert outcome.best_fixed is not None
        fixed = make_plan(problem, outcome.best_fixed[1])
        return {
            "rows": {"adapruner": setting.stages(problem, outcome.plan), "best fixed": setting.stages(problem, fixed)},
            "notes": {"adapruner": {"recipe": outcome.recipe.to_dict()}, "best fixed": {"name": outcome.best_fixed[0].name}},
        }

    yield "adapruner", ours
    fresh = Arm(held_out=setting.arguments.held_out)
    yield FRESH, _ablation(setting, problem, FRESH, fresh)
    for name, recipe in BASELINES.items():
        for domain in ("in", "out"):
            for allocation in ("global", "uniform"):
                yield f"{name}, {domain}, {allocation}", _baseline(setting, problem, name, recipe, domain, allocation)
    for name, arm in arms().items():
        yield name, _ablation(setting, problem, name, arm)


def _found_before(setting: Setting, budget: float) -> Recipe | None:
    """The recipe that the search ended with in an earlier record, so that its plan can be measured on other windows."""
    if setting.arguments.recipes is None:
        return None
    wanted = {"model": setting.name, "budget": budget, "seed": setting.seed, "method": "adapruner"}
    notes = json.loads(setting.arguments.recipes.read_text())["notes"]
    record = next((n["recipe"] for n in notes if all(n[k] == v for k, v in wanted.items())), None)
    if record is None:
        return None
    parts = {"allocation": Allocation(**record["allocation"]), "calibration": CalibrationChoice.from_dict(record["calibration"])}
    return Recipe(**{**record, **parts})


def _baseline(setting: Setting, problem: PruningProblem, name: str, recipe: Recipe, domain: str, allocation: str) -> Any:
    def measure() -> dict[str, Any]:
        ways = Allocation("uniform") if allocation == "uniform" else Allocation("gamma", 0.0)
        changes = {"allocation": ways} if name != "flap" else FLAP_UNIFORM if allocation == "uniform" else FLAP_GLOBAL
        own = replace(recipe, **changes)
        with_text, own = setting.calibrated(problem, own, domain)
        values = setting.stages(with_text, make_plan(with_text, own), without_refit=False)
        return {"rows": {f"{name}, {domain}, {allocation}": values}}

    return measure


def _ablation(setting: Setting, problem: PruningProblem, name: str, arm: Arm) -> Any:
    return lambda: {"rows": {name: setting.stages(problem, setting.search(problem, arm).plan, False)}}


def run(arguments: argparse.Namespace) -> None:
    record = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"cells": [], "notes": []}
    done = {(c["model"], c["budget"], c["method"], c["seed"]) for c in record["cells"]}
    for seed in arguments.seeds:
        for name in arguments.models:
            setting = Setting(name, seed, arguments)
            record.setdefault("dense", {})[name] = setting.perplexity(setting.model)
            for budget in arguments.budgets:
                for method, measure in cells(setting, budget):
                    skip = any(word in method for word in arguments.skip) or (arguments.only and method not in arguments.only)
                    if skip or (name, budget, method, seed) in done:
                        continue
                    started = time.monotonic()
                    found = measure()
                    seconds = round(time.monotonic() - started, 1)
                    for row, values in found["rows"].items():
                        cell = {"model": name, "budget": budget, "method": row, "seed": seed, **values, "seconds": seconds}
                        record["cells"].append(cell)
                        shown = "  ".join(f"{k.removeprefix('perplexity_')} {v:.2f}" for k, v in values.items() if math.isfinite(v))
                        print(f"{name} {budget:.0%} seed {seed} {row}: {shown}  ({seconds} s)", flush=True)
                    notes = found.get("notes", {})
                    record["notes"] += [{"model": name, "budget": budget, "seed": seed, "method": m, **n} for m, n in notes.items()]
                    _write(arguments, record)


def _write(arguments: argparse.Namespace, record: dict[str, Any]) -> None:
    record["setting"] = {
        "command": f"python benchmarks/quality.py {' '.join(f'--{k} {v}' for k, v in _options(arguments).items())}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    temporary = arguments.json.with_name(f".{arguments.json.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(arguments.json)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    shown = {k.replace("_", "-"): v for k, v in vars(arguments).items() if k not in ("json", "only", "skip", "cache", "recipes")}
    return {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in shown.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go; a file that is there is gone on with")
    parser.add_argument("--models", nargs="+", default=["demo", "larger"], help="demo, larger, or a folder")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.8, 0.2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=96)
    parser.add_argument("--samples", type=int, default=32, help="calibration samples of 128 tokens from each of the six sources")
    parser.add_argument("--search-samples", type=int, default=64, help="windows of 128 tokens in the search split")
    parser.add_argument("--held-out", type=int, default=256, help="further search windows for the second look alone, in its own method")
    parser.add_argument("--test-windows", type=int, default=48, help="held-out windows of 128 tokens; 0: all 162")
    parser.add_argument("--bos", default="auto", help="windows that begin with the begin-of-text token: auto, every, first or none")
    parser.add_argument("--ridge", type=float, help="of the refit; its own default when empty")
    parser.add_argument("--relative-to", choices=["channel", "mean"], default="channel", help="what the ridge is relative to")
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--rerank-steps", type=int, default=0, help="optimizer steps of the candidates' short recovery")
    parser.add_argument("--recovery-steps", type=int, default=10, help="optimizer steps of 8 x 128 tokens")
    parser.add_argument("--cache", help="folder for statistics, so that a run that goes on need not collect them again")
    parser.add_argument("--recipes", type=Path, help="an earlier record: its recipes in place of adapruner's search")
    parser.add_argument("--only", nargs="*", default=[], help="methods to measure")
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out, by a part of their name")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
