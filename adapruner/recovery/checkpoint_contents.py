"""What a training checkpoint says of pruning: the plan and the form of the adapters, so that its weights fit a dense model again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from adapruner.errors import ModelError
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.surgery import prune_model, trace_for_plan
from adapruner.recovery.lora import LoRAConfig, attach_lora, describe_lora

PLAN_KEY = "adapruner_plan"
LORA_KEY = "adapruner_lora"
#: Of a sharded checkpoint, the file that holds everything but tensors.
SHARDED = "meta.pt"


def describe_pruning(model: Any, plan: PruningPlan | None) -> dict[str, Any]:
    """The entries that a checkpoint of the model gets, as JSON types: its plan, and its adapters where it has some."""
    entries: dict[str, Any] = {} if plan is None else {PLAN_KEY: plan.to_dict()}
    if hasattr(model, "peft_config"):
        entries[LORA_KEY] = describe_lora(model)
    return entries


def fit_to_checkpoint(
    model: Any,
    checkpoint: Mapping[str, Any],
    plan: PruningPlan | None,
    on_pruned: Callable[[Any, ModelStructure, PruningPlan], None] | None = None,
) -> tuple[Any, PruningPlan | None]:
    """Prunes a dense model by the checkpoint's plan and attaches its adapters, so that the weights of the checkpoint fit.

    Args:
        model: dense, or pruned by ``plan``; changed in place.
        plan: what the model was pruned by; ``None``: it is dense.
        on_pruned: called with the model, the dense model's structure and the plan, where it was pruned here.

    Returns:
        The model, wrapped by peft where the checkpoint has adapters, and the plan that it is pruned by now.

    Raises:
        ModelError: if the model was pruned by another plan already.
        PlanError: if the checkpoint's plan is damaged or for another model.
    """
    record = checkpoint.get(PLAN_KEY)
    if record is not None:
        wanted = read_plan(record)
        if plan is not None and plan.hash != wanted.hash:
            raise ModelError(
                f"ckpt_path: expected a checkpoint of the plan {plan.hash}, got one of {wanted.hash}; give one of the two, not both"
            )
        if plan is None:
            structure = trace_for_plan(model, wanted)
            prune_model(model, structure, wanted)
            plan = wanted
            if on_pruned is not None:
                on_pruned(model, structure, plan)
    if checkpoint.get(LORA_KEY) is not None and not hasattr(model, "peft_config"):
        model = attach_lora(model, LoRAConfig(**checkpoint[LORA_KEY])).train()
    return model, plan


def plan_of_checkpoint(checkpoint: str | None) -> PruningPlan | None:
    """The plan in a checkpoint's file, or folder where it is sharded; ``None`` where there is none.

    It is known before the weights are loaded, since they only fit a model that was pruned by it.

    Raises:
        PlanError: if it is there and is not a plan of this release.
    """
    if checkpoint is None:
        return None
    file = Path(checkpoint)
    if file.is_dir():
        file = file / SHARDED
    if not file.is_file():
        return None
    record = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    plan = record.get(PLAN_KEY) or next(
        (s["plan"] for s in record.get("callbacks", {}).values() if isinstance(s, dict) and "plan" in s), None
    )
    return None if plan is None else read_plan(plan)
