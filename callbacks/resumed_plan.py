"""The plan that a checkpoint carries: known before its weights are loaded, since they only fit a model cut by it."""

from __future__ import annotations

from pathlib import Path

import torch

from adapruner.callbacks.recovery_checkpoint import SHARDED
from adapruner.pruning.plan import PruningPlan, read_plan


def plan_of_checkpoint(checkpoint: str | None) -> PruningPlan | None:
    """The plan in a checkpoint's file, or folder where it is sharded; ``None`` where there is none.

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
    from adapruner.module import PLAN_KEY

    record = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    plan = record.get(PLAN_KEY) or next(
        (s["plan"] for s in record.get("callbacks", {}).values() if isinstance(s, dict) and "plan" in s), None
    )
    return None if plan is None else read_plan(plan)
