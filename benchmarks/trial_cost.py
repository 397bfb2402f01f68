"""What a search trial costs: the naive way, the naive way over the whole pool, and adapruner's, side by side.

    python benchmarks/trial_cost.py --json trial_cost.json

The same trials (sample weights, a mixture of Taylor and magnitude, allocation) are run three ways at an equal search split,
without early stopping, one after another in turns, so that a busy machine slows all of them alike:

- naive: deep copy, one backward per chosen sample (10 of the pool) for first and second order, scores, the copy's dependency
  graph and torch-pruning's own surgery (its graph belongs to the copy's modules, so it is built anew), evaluation;
- naive over the pool: the same with every sample of the pool, weighted;
- ours: recipe -> scores from the cached statistics -> plan -> evaluation at the pruned widths, as the search runs it. The one
  pass that fills the cache is timed and shared out over the trials.

``overhead_over_masked_forward`` is ours against the bare forward pass of a model that is already cut to the same
widths. ``naive_without_graph_seconds`` leaves the graph out of the naive way, as if its index maps were known: the
part of the gain that is not the graph. Each way is timed on as many of the trials as ``--our-trials``, ``--naive-
trials`` and ``--naive-pool-trials`` say and scaled to all; the file says how many. A file that is there keeps its
other models. ``early_stopping_saves`` replays the trials' chunks through the median rule: the part of the evaluation
that it would have spared.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationGroups, CalibrationPool
from adapruner.data.windows import TextWindows
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.importance.statistics import UnitStatistics, collect_statistics
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.budget import Budget
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import pruned
from adapruner.search.config import SearchConfig
from adapruner.search.space import softmax
from adapruner.search.trial_value import Objective

CHOSEN = 10


def build(name: str) -> nn.Module:
    """``demo``: the embedded model. ``larger``: a random Llama with more than 10 times its parameters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name == "demo":
        from adapruner.demo import MODEL_FOLDER

        model: nn.Module = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
        return model
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=9,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def windows(count: int, seq_len: int, seed: int) -> TextWindows:
    """Random tokens: what they say makes no difference to the cost."""
    ids = torch.randint(3, 4096, (count, seq_len), generator=torch.Generator().manual_seed(seed))
    sources = [f"source {i}" for i in range(4)]
    return TextWindows(ids, ids.clone(), torch.ones_like(ids), sources, torch.arange(count) % 4, [f"{i:x}" for i in range(count)])


def draw_trials(count: int, seed: int) -> list[Recipe]:
    """Recipes over the metrics that all three ways compute."""
    generator = torch.Generator().manual_seed(seed)
    trials = []
    for _ in range(count):
        first, second, l2, gamma = torch.rand(4, generator=generator).tolist()
        logits = {f"source {i}": float(v) for i, v in enumerate(torch.randn(4, generator=generator))}
        recipe = Recipe(
            {"taylor_vectorize": first, "taylor_second": second, "l2": l2},
            CalibrationChoice(softmax(logits)),
            allocation=Allocation("gamma", gamma),
        )
        trials.append(recipe)
    return trials


def naive_trial(
    model: nn.Module, problem: PruningProblem, recipe: Recipe, pool: TextWindows, rows: Tensor, split: TextWindows, times: dict[str, float]
) -> tuple[str, float]:
    """Copies, differentiates sample by sample, scores, cuts, evaluates; returns the kept units and the NLL."""
    twin: Any = copy.deepcopy(model)
    weights = problem.calibration.sample_weights(recipe.calibration)[rows]
    weights = weights / weights.sum()
    sums = {name: torch.zeros_like(p) for name, p in twin.named_parameters() if p.ndim == 2}
    squares = {name: torch.zeros_like(p) for name, p in sums.items()}
    for row, weight in zip(rows.tolist(), weights.tolist(), strict=True):
        twin.zero_grad()
        twin(pool.input_ids[row : row + 1], labels=pool.labels[row : row + 1], use_cache=False).loss.backward()
        for name, parameter in twin.named_parameters():
            if name in sums and parameter.grad is not None:
                sums[name].add_(parameter.grad, alpha=weight)
                squares[name].addcmul_(parameter.grad, parameter.grad, value=weight)
    statistics = UnitStatistics(1, torch.ones(1), torch.zeros(1))
    for member in (m for g in problem.structure.groups for m in g.members):
        w, name = twin.get_submodule(member.module).weight.detach(), f"{member.module}.weight"
        statistics.weights["l2", member.module] = w.square().sum(1 - member.dim)
        statistics.member["first", member.module] = (w * sums[name]).sum(1 - member.dim)[None]
        statistics.member["second", member.module] = (w.square() * squares[name]).sum(1 - member.dim)[None]
    pool_of_one = CalibrationPool(CalibrationGroups(("all",), torch.zeros(1, dtype=torch.long)))
    alone = PruningProblem(problem.structure, statistics, pool_of_one, problem.budget, "", "")
    plan = make_plan(alone, Recipe(recipe.coefficients, allocation=recipe.allocation))
    twin.set_attn_implementation("eager")  # traced under sdpa, grouped-query attention comes out wrong
    started = time.perf_counter()
    graph = dependency_graph(twin)
    times["graph"] = time.perf_counter() - started
    prune_by_graph(graph, twin, problem.structure, plan.kept)
    twin.set_attn_implementation("sdpa")
    return _kept(plan.kept), evaluate_nll(twin, split).nll


def dependency_graph(twin: Any) -> Any:
    """torch-pruning's graph of the whole copy, with the concatenations of rotary embeddings taken out (else it never closes)."""
    import torch_pruning as tp

    ids = torch.zeros(1, 8, dtype=torch.long)
    graph = tp.DependencyGraph()
    graph.build_dependency(
        twin, example_inputs=ids, forward_fn=lambda m, x: m(x, attention_mask=torch.ones_like(x), use_cache=False).logits, verbose=False
    )
    for node in graph.module2node.values():
        if node.type == tp.ops.OPTYPE.CONCAT:
            node.enable_index_mapping = False
            towards = [d for n in {*node.inputs, *node.outputs} for d in n.dependencies if d.target is node]
            for dependency in [*node.dependencies, *towards]:
                dependency.index_mapping = [None, None]
    return graph


def prune_by_graph(graph: Any, twin: Any, structure: ModelStructure, kept: Any) -> None:
    """Removes every group's units by torch-pruning's own functions, repeated indices of shared rows once."""
    import torch_pruning as tp

    for group in structure.groups:
        gone = [u for u in range(group.units) if u not in set(kept[group.name])]
        if gone:
            root = twin.get_submodule(group.output.module)
            for dependency, indices in graph.get_pruning_group(root, tp.prune_linear_in_channels, idxs=group.channels_of(gone).tolist()):
                if isinstance(dependency.target.module, nn.Linear):
                    dependency.handler(dependency.target.module, sorted(set(indices)))


def our_trial(model: nn.Module, problem: PruningProblem, recipe: Recipe, objective: Objective) -> tuple[str, list[float]]:
    """One trial as the search runs it: the kept units, and the value after each chunk."""
    plan = make_plan(problem, recipe)
    return _kept(plan.kept), [part.value for part in objective.of_plan(model, plan, recipe)]


def bare_forward(model: nn.Module, problem: PruningProblem, recipe: Recipe, split: TextWindows) -> float:
    """Seconds of the evaluation alone, of a model that already has the trial's widths."""
    with pruned(model, problem.structure, make_plan(problem, recipe)):
        started = time.perf_counter()
        evaluate_nll(model, split)
        return time.perf_counter() - started


def _kept(kept: Any) -> str:
    return json.dumps(sorted(kept.items()))


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All three ways on one model."""
    model = build(name).eval()
    structure = trace_structure(model)
    pool, split = windows(arguments.pool, 128, 1), windows(arguments.split, 256, 2)
    started = time.perf_counter()
    statistics = collect_statistics(model, structure, pool, needs=frozenset({"first", "second"}))
    cache = time.perf_counter() - started
    groups = CalibrationPool(CalibrationGroups(tuple(pool.source_names), pool.source_index))
    problem = PruningProblem(structure, statistics, groups, Budget(arguments.pruned_fraction), name, fingerprint_model(model))
    objective = Objective(model, problem, split, SearchConfig(), None)
    times: dict[str, list[float]] = {"naive": [], "naive_pool": [], "ours": [], "bare": [], "graph": []}
    same_units, checked, values, spent = 0, 0, [], {"graph": 0.0}
    generator = torch.Generator().manual_seed(3)
    for index, recipe in enumerate(draw_trials(arguments.our_trials, 0)):
        timed = _timed(times["ours"], our_trial, model, problem, recipe, objective)
        values.append(timed[1])
        times["bare"].append(bare_forward(model, problem, recipe, split))
        if index < arguments.naive_trials:
            chosen = torch.randperm(len(pool), generator=generator)[:CHOSEN]
            _timed(times["naive"], naive_trial, model, problem, recipe, pool, chosen, split, spent)
            times["graph"].append(spent["graph"])
        if index < arguments.naive_pool_trials:
            whole = _timed(times["naive_pool"], naive_trial, model, problem, recipe, pool, torch.arange(len(pool)), split, spent)
            same_units, checked = same_units + (whole[0] == timed[0]), checked + 1
        print(f"{name}: trial {index + 1} of {arguments.our_trials}", flush=True)
    return _summary(model, times, cache, arguments.trials, same_units, checked) | {"early_stopping_saves": spared_by_median(values)}


def spared_by_median(values: list[list[float]]) -> float:
    """Part of all chunks that the median rule would not have evaluated, of the trials in this order."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=8, n_min_trials=4))
    evaluated = 0
    for chunks in values:
        trial, stopped = study.ask(), False
        for step, value in enumerate(chunks):
            trial.report(value, step)
            evaluated += 1
            if step < len(chunks) - 1 and trial.should_prune():
                stopped = True
                break
        study.tell(trial, None if stopped else chunks[-1], state=optuna.trial.TrialState.PRUNED if stopped else None)
    return 1.0 - evaluated / sum(len(chunks) for chunks in values)


def _timed(into: list[float], function: Any, *arguments: Any) -> Any:
    started = time.perf_counter()
    result = function(*arguments)
    into.append(time.perf_counter() - started)
    return result


def _summary(model: nn.Module, times: dict[str, list[float]], cache: float, trials: int, same: int, checked: int) -> dict[str, Any]:
    mean = {name: sum(values) / len(values) for name, values in times.items()}
    ours = mean["ours"] + cache / trials
    ratios = sorted(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trials": trials,
        "our_trials_timed": len(times["ours"]),
        "naive_trials_timed": len(times["naive"]),
        "naive_pool_trials_timed": len(times["naive_pool"]),
        "naive_seconds": mean["naive"] * trials,
        "naive_without_graph_seconds": (mean["naive"] - mean["graph"]) * trials,
        "naive_pool_seconds": mean["naive_pool"] * trials,
        "seconds": ours * trials,
        "seconds_statistics": cache,
        "speedup_over_naive": mean["naive"] / ours,
        "speedup_over_naive_without_graph": (mean["naive"] - mean["graph"]) / ours,
        "speedup_over_naive_pool": mean["naive_pool"] / ours,
        "overhead_over_masked_forward": ratios[len(ratios) // 2],
        "same_units": f"{same} of {checked}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--models", nargs="+", default=["demo", "larger"])
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--our-trials", type=int, default=48, help="so many of them are timed our way")
    parser.add_argument("--naive-trials", type=int, default=12)
    parser.add_argument("--naive-pool-trials", type=int, default=1)
    parser.add_argument("--pool", type=int, default=160, help="calibration samples of 128 tokens")
    parser.add_argument("--split", type=int, default=16, help="windows of 256 tokens in the search split")
    parser.add_argument("--pruned-fraction", type=float, default=0.5)
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    record |= {name: measure(name, arguments) for name in arguments.models}
    record["setting"] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}
    temporary = arguments.json.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.replace(arguments.json)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
