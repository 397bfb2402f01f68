"""Sections of ``report.json`` that are read off a finished run, as JSON types; see :mod:`adapruner.report.schema`."""

from __future__ import annotations

import inspect
import math
import platform
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapruner._version import __version__
from adapruner.calibration.choice import CalibrationChoice
from adapruner.data.calibration_set import effective_samples
from adapruner.importance.metrics import find_metric
from adapruner.models.units import ModelStructure
from adapruner.pruning.budget import Budget
from adapruner.pruning.fixed_recipe import SEARCHED, fixed_recipe_of
from adapruner.pruning.plan import PruningPlan
from adapruner.recovery.post_pruning import recipe_of
from adapruner.search.chosen_samples import CALIBRATION_SET, heaviest_samples
from adapruner.search.find_plan import FoundPlan
from adapruner.search.objectives import OBJECTIVES
from adapruner.search.reranking import to_rows
from adapruner.search.score import ScoredModel
from adapruner.search.trials import TrialRecord, to_history
from adapruner.stage_times import StageTimes, peak_gib, process_began, running_times, seconds_by_stage


@dataclass(frozen=True)
class EvaluatedText:
    """One held-out set at one window, whatever model is measured on it."""

    protocol: str
    tokens: int
    """Predicted ones."""
    text_bytes: int | None
    """UTF-8 bytes that they stand for, where known."""

    def bits_per_byte(self, perplexity: float) -> float | None:
        """What a perplexity on this text is in bits per byte: comparable between tokenizers. ``None`` where bytes are not known."""
        return math.log2(perplexity) * self.tokens / self.text_bytes if self.text_bytes else None


def judged_in_words(scored: ScoredModel) -> str:
    """What the value of a trial is, in words."""
    objective = scored.options.search.objective
    measure = getattr(OBJECTIVES.find(objective.measure), "words", objective.measure)
    model = "of the model as pruned" if scored.refit is None else "of the model after the local refit"
    cost = f", plus {objective.cost_weight} times the fraction of {objective.cost} left" if objective.cost_weight else ""
    return f"{measure} {model}{cost}"


def _removed_fraction(scored: ScoredModel, found: FoundPlan) -> float:
    """Removed fraction of what the budget counts."""
    plan, problem, stage = found.plan, scored.problem, scored.stage
    if problem.costs is None or plan.budget["of"] in ("block", "all"):
        return plan.pruned_fraction
    left = problem.costs.left_by(found.remaining.kept, problem.structure)
    if stage.sizes is None or plan.budget["of"] == "latency":
        return 1.0 - left / problem.costs.whole
    dense = Budget(0.0, plan.budget["of"], seq_len=scored.options.budget.seq_len).costs(stage.dense, sizes=stage.sizes)
    return 1.0 - left / dense.whole


def model_section(scored: ScoredModel, found: FoundPlan) -> dict[str, Any]:
    """What was pruned, and by how much."""
    plan, kinds = found.plan, ("attention", "ffn")
    dense = {
        kind: [plan.units[n] for n in sorted(plan.units, key=lambda n: int(n.split(".")[0])) if n.endswith(f".{kind}")] for kind in kinds
    }
    return {
        "name": plan.model["name"],
        "model_type": plan.model["model_type"],
        "layers": len(dense["attention"] or dense["ffn"]),
        "parameters_dense": plan.parameters["dense"],
        "parameters_pruned": plan.parameters["pruned"],
        "pruned_fraction_target": plan.budget["pruned_fraction"],
        "pruned_fraction": _removed_fraction(scored, found),
        "budget_of": plan.budget["of"],
        "block_parameters_dense": plan.parameters["block_dense"],
        "block_parameters_pruned": plan.parameters["block_pruned"],
        "plan_hash": plan.hash,
        "uniform": plan.is_uniform(),
        "units": {kind: {"dense": dense[kind], "kept": plan.widths(kind)} for kind in kinds},
        "gates": _gates(found.remaining),
    }


def _took(stage: str) -> float:
    """Seconds of a stage in all processes of the run: one that goes on has little left to do."""
    times = running_times()
    return 0.0 if times is None else seconds_by_stage(times.processes()).get(stage, 0.0)


def refit_seconds(now: float) -> float:
    """Seconds of the refit: in this process, or in an earlier one whose weights are there."""
    return now or _took("refit")


def _gates(plan: PruningPlan) -> dict[str, Any] | None:
    """What learned gates came to; ``None`` without them, or where the search's own units were the best."""
    found = plan.provenance.get("gates")
    if found is None:
        return None
    best = found["best"]
    figures = {"first": found["first"]["held_out"], "best": best["held_out"], "exchanged": best["exchanged"]}
    return {"steps": found["steps"], "best_step": best["step"], **figures}


def search_section(scored: ScoredModel, found: FoundPlan, dense_nll: float | None) -> dict[str, Any] | None:
    """The study; ``None`` without a search. ``dense_nll``: of the dense model on the search split, in nats per token."""
    outcome = found.outcome
    if outcome is None:
        return None
    fixed = [t.value for t in outcome.trials if t.name != SEARCHED and t.state == "complete" and t.value is not None]
    return {
        "trials": len(outcome.trials),
        "completed": _count(outcome.trials, "complete"),
        "stopped_early": _count(outcome.trials, "pruned"),
        "resumed": outcome.resumed,
        "world_size": scored.identity.get("world size"),
        "seconds_total": max(outcome.seconds + scored.seconds, _took("statistics") + _took("search")),
        "seconds_statistics": max(scored.seconds, _took("statistics")),
        "best_value": outcome.best.value,
        "best_trial": outcome.best.trial,
        "best_fixed_value": min(fixed, default=None),
        "fixed_recipe": fixed_recipe_of(found.plan.provenance),
        "dense_value": {"nll": dense_nll, "kl": 0.0}.get(scored.options.search.objective.measure),
        "recipe": outcome.recipe.to_dict(),
        "history": to_history(outcome.trials),
        "importance": outcome.importance,
        "judged": judged_in_words(scored),
        "candidates": to_rows(outcome.candidates),
        "rounds": scored.options.rounds,
        "front": [{"trial": t.trial, "value": t.value, "cost": t.cost} for t in outcome.front],
    }


def calibration_section(scored: ScoredModel, found: FoundPlan) -> dict[str, Any]:
    """The weights of sources and samples, and how much their choice matters."""
    problem = scored.problem
    choice = recipe_of(found.plan).calibration
    given = scored.given is not None  # a plan from elsewhere: its sources need not be this pool's
    pool = problem.calibration if given else problem.at_length(choice.seq_len)[1]
    weights = pool.sample_weights(CalibrationChoice() if given else choice)
    file = None if scored.folder is None else scored.folder / CALIBRATION_SET
    spread = found.outcome.spread if found.outcome is not None else None
    return {
        "samples": pool.samples,
        "seq_len": choice.seq_len or int(scored.data.calibration_windows.input_ids.shape[1]),
        "sources": pool.sources.shares(weights),
        "effective_samples": effective_samples(weights),
        **({} if pool.clusters is None else {"clusters": pool.clusters.shares(weights)}),
        **({"set_file": file.name, "heaviest": heaviest_samples(file)} if file is not None and file.is_file() else {}),
        **({} if spread is None else {"spread": spread.to_dict()}),
    }


def cost_section(
    dense_config: Any,
    model: nn.Module,
    seq_len: int,
    repeats: int,
    batches: Sequence[int] = (),
    seq_lens: Sequence[int] = (),
    structure: ModelStructure | None = None,
) -> dict[str, Any]:
    """What the dense and the pruned model cost, measured now and side by side, the dense one with random weights.

    Where the device's memory holds only one of them, one after the other; what does not fit even so is ``None``, and the protocol
    says so. Parameters, multiply-accumulates and weight memory are always there.

    Args:
        dense_config: the dense model's configuration.
        model: the pruned model.
        seq_len: tokens of the timed forward.
        repeats: timed rounds.
        batches: sizes for the sweep over batch and length; empty for none.
        seq_lens: lengths for it.
        structure: of the model before pruning, where that may have been pruned before.
    """
    from adapruner.evaluation.cost import cost_protocol
    from adapruner.evaluation.limited_memory import ONE_BY_ONE, PairOfModels
    from adapruner.evaluation.speed import speed_protocol, speed_rows

    turns = "models in turns"
    pair = PairOfModels(dense_config, model, structure)
    section: dict[str, Any] = pair.costs(seq_len, repeats)
    order = turns if pair.together else ONE_BY_ONE
    untimed = [f"the {name} model" for name in pair.models if section[name]["latency_ms"] is None]
    section["protocol"] = cost_protocol(model, seq_len=seq_len, repeats=repeats, order=order)
    if untimed:
        section["protocol"] += f"; the device's memory did not suffice for latency, peak memory and energy of {' and '.join(untimed)}"
    points = pair.speeds(batches, seq_lens, repeats) if batches else None
    if points is not None:
        words = speed_protocol(seq_lens, repeats)
        section["sweep"] = {"rows": speed_rows(points), "protocol": words if pair.together else words.replace(turns, ONE_BY_ONE)}
    elif batches:
        section["protocol"] += "; the device's memory did not suffice for the sweep over batch and length"
    return section


def command_line(words: Sequence[str]) -> str:
    """What one would type to run this again, where the program is installed.

    >>> command_line(["/usr/bin/adapruner", "fit", "--config", "my run.yaml"])
    "adapruner fit --config 'my run.yaml'"
    """
    program, own = Path(words[0]).name, {"adapruner", "__main__.py"}
    return shlex.join([*(["adapruner"] if program in own else ["python", words[0]]), *words[1:]])


def package_versions() -> dict[str, str]:
    """Versions of adapruner, Python and the libraries that decide a result."""
    from importlib.metadata import version

    packages = ("torch", "lightning", "transformers", "torch-pruning", "optuna", "peft")
    return {"adapruner": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def hardware_in_words(device: torch.device, processes: int = 1) -> str:
    """Device, threads and processes."""
    threads = torch.get_num_threads()
    on_cpu = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    return f"{where}, {processes} process{'es' if processes > 1 else ''}"


def metric_sentences(names: Iterable[str]) -> dict[str, str]:
    """Metric -> what it is: the first paragraph of its docstring, and its paper.

    >>> metric_sentences(["gate_fisher"])["gate_fisher"].startswith("sum_n")
    True
    """
    found = {}
    for name in dict.fromkeys(names):
        metric = find_metric(name)
        said = " ".join((inspect.getdoc(metric if inspect.isclass(metric) else type(metric)) or "").partition("\n\n")[0].split())
        found[name] = f"{said} ({metric.paper})" if said else str(metric.paper)
    return found


def took_section(device: torch.device, times: StageTimes | None = None) -> dict[str, Any]:
    """Time of the run and of its stages over all its processes, and the most memory that one held; of this process alone without a run's
    clock."""
    alone = {"seconds": time.time() - process_began(), "peak_gib": peak_gib()}
    found: dict[str, Any] = alone if times is None else times.summary()
    return {**found, "device_peak_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else found


def _count(trials: list[TrialRecord], state: str) -> int:
    return sum(t.state == state for t in trials)
