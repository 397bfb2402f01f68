"""The model of a run, built again: base model, surgery by the plan, weights of a Lightning checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapruner.errors import ModelError
from adapruner.export.loading import open_export
from adapruner.files.digests import DamagedError
from adapruner.models.fingerprint import digest_weights, fingerprint_model
from adapruner.models.loading import load_language_model, model_source
from adapruner.models.units import ModelStructure
from adapruner.pruning.before_pruning import trace_for_plan
from adapruner.pruning.plan import PruningPlan
from adapruner.recovery.checkpoint_contents import PLAN_KEY, fit_to_checkpoint, read_contents

PREFIX = "model."
"""Of the model's tensors in a checkpoint of ``fit``."""


def read_checkpoint(file: Path, argument: str = "checkpoint") -> dict[str, Any]:
    """A Lightning checkpoint's dictionary; tensors stay on disk until they are used, and no code in the file runs.

    Args:
        argument: the option that named it, for messages.

    Raises:
        ModelError: if the file is missing, cut short, holds more than tensors and plain values, or no pruned model.
    """
    if file.is_dir():
        raise ModelError(f"{argument}: expected one file, got the sharded checkpoint {file}; gather it, or export the run's model folder")
    try:
        record = read_contents(file)
    except FileNotFoundError:
        raise ModelError(f"{argument}: expected a file, got none at {file}; give the path of a .ckpt file") from None
    except DamagedError as error:
        raise ModelError(
            f"{argument}: expected a whole Lightning checkpoint of tensors and plain values, got damage in {file} ({error}); "
            f"take another with --{argument}"
        ) from None
    weights = record.get("state_dict") if isinstance(record, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{argument}: expected the checkpoint of a run, got no weights in {file}; give one that fit wrote")
    if not isinstance(record.get(PLAN_KEY), dict):
        raise ModelError(f"{argument}: expected the checkpoint of a pruned model, got no plan in {file}; give one that fit wrote")
    return record


def rebuild(base: Mapping[str, Any], plan: PruningPlan, record: Mapping[str, Any]) -> tuple[Any, ModelStructure]:
    """The model at the plan's widths with the checkpoint's weights, and the structure of the base model.

    Adapters are attached where the run had any.

    Args:
        base: ``name_or_path``, ``dtype`` and ``revision`` of the base model.
        plan: of the run.
        record: what :func:`read_checkpoint` gave.

    Raises:
        PlanError: if the base model is not the one that the plan was made for.
        ModelError: if it cannot be loaded, or the weights do not fit.
    """
    exported = open_export(model_source(base["name_or_path"]), base["dtype"])
    model = load_language_model(**base) if exported is None else exported.model
    structure = trace_for_plan(model, plan)
    plan.check(structure, fingerprint_model(model), digest_weights(model))
    try:
        model, _ = fit_to_checkpoint(model, record, None)
    except TypeError as error:
        raise ModelError(f"checkpoint: expected the settings of LoRA, got others ({error}); give a checkpoint that fit wrote") from None
    _fill(model, record["state_dict"])
    return model.eval(), structure


def _fill(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Every tensor of the model becomes the checkpoint's, of its own precision; tied ones stay tied."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    own = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    try:
        model.load_state_dict(own, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise ModelError(
            f"checkpoint: expected the tensors of the pruned model, got others ({reason}); give a checkpoint of this run"
        ) from None
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
