"""Sections of ``report.json`` that are read off a finished run, as JSON types; see :mod:`adapruner.report.schema`."""

from __future__ import annotations

import platform
from typing import Any

import torch
from lightning import Trainer

from adapruner._version import __version__
from adapruner.calibration.choice import CalibrationChoice
from adapruner.callbacks.pruning_search import CALIBRATION_SET, PruningSearchCallback
from adapruner.data.calibration_set import effective_samples
from adapruner.treatment import recipe_of


def judged_in_words(pruning: PruningSearchCallback) -> str:
    """What a trial's value is."""
    objective = pruning.search.objective
    measure = "NLL" if objective.measure == "nll" else "KL from the dense model's predictions"
    model = "of the model as cut" if pruning.refit is None else "of the model after the local refit"
    cost = f", plus {objective.cost_weight} times the fraction of {objective.cost} left" if objective.cost_weight else ""
    return f"{measure} {model}{cost}"


def _reached(pruning: PruningSearchCallback) -> float:
    """Removed fraction of what the budget counts."""
    plan, problem = pruning.plan, pruning.problem
    assert plan is not None
    if problem is None or problem.costs is None or plan.budget["of"] in ("block", "all"):
        return plan.pruned_fraction
    return problem.costs.removed_by(plan.kept, problem.anatomy) / problem.costs.whole


def model_section(pruning: PruningSearchCallback) -> dict[str, Any]:
    """What was pruned, and by how much."""
    plan = pruning.plan
    assert plan is not None
    kinds = ("attention", "ffn")
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
        "pruned_fraction": _reached(pruning),
        "budget_of": plan.budget["of"],
        "block_parameters_dense": plan.parameters["block_dense"],
        "block_parameters_pruned": plan.parameters["block_pruned"],
        "plan_hash": plan.hash,
        "uniform": plan.is_uniform(),
        "units": {kind: {"dense": dense[kind], "kept": plan.widths(kind)} for kind in kinds},
    }


def calibration_section(pruning: PruningSearchCallback, data: Any) -> dict[str, Any] | None:
    """Which samples spoke, and how much it matters which; ``None`` without a problem."""
    problem, plan = pruning.problem, pruning.plan
    if problem is None or plan is None:
        return None
    choice = recipe_of(plan).calibration
    given = pruning.outcome is None and pruning.recipe is None  # a plan from elsewhere: its sources need not be this pool's
    pool = problem.calibration if given else problem.at_length(choice.seq_len)[1]
    weights = pool.sample_weights(CalibrationChoice() if given else choice)
    file = pruning.folder / CALIBRATION_SET
    spread = pruning.outcome.spread if pruning.outcome is not None else None
    return {
        "samples": pool.samples,
        "seq_len": choice.seq_len or int(data.calibration_windows.input_ids.shape[1]),
        "sources": pool.sources.shares(weights),
        "effective_samples": effective_samples(weights),
        **({} if pool.clusters is None else {"clusters": pool.clusters.shares(weights)}),
        **({"set_file": file.name} if file.is_file() else {}),
        **({} if spread is None else {"spread": spread.to_dict()}),
    }


def package_versions() -> dict[str, str]:
    """Of adapruner, Python and the libraries that decide a result."""
    from importlib.metadata import version

    packages = ("torch", "lightning", "transformers", "torch-pruning", "optuna", "peft")
    return {"adapruner": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def hardware_in_words(trainer: Trainer) -> str:
    """Device, threads and processes."""
    device = trainer.strategy.root_device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{where}, {trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
