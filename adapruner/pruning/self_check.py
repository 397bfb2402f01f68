"""A family that no test covers is checked on the spot: a wrong trace raises no error, but pruned and masked outputs differ."""

from __future__ import annotations

from typing import Any

import torch

from adapruner.errors import ModelError
from adapruner.models.families import TRIED
from adapruner.models.forward import evaluation_mode, random_ids
from adapruner.models.units import ModelStructure
from adapruner.pruning.masking import masked
from adapruner.pruning.plan import PruningPlan, plan_of_widths
from adapruner.pruning.surgery import pruned

#: Largest difference of logits, as a part of their standard deviation; rounding in bfloat16 stays below.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.1


def check_family(model: Any, structure: ModelStructure, tokens: int = 16) -> None:
    """Compares the masked with the pruned model on a few random tokens, unless the family is among those the tests go through.

    Every second unit of every group goes. Two forward passes; the model is as before afterwards.

    Raises:
        ModelError: if the two compute different things.
    """
    if structure.model_type in TRIED:
        return
    plan = _every_second(structure)
    ids = random_ids(model, 1, tokens)
    with evaluation_mode(model):
        with masked(model, structure, plan):
            expected = model(input_ids=ids).logits.float()
        with pruned(model, structure, plan):
            try:
                got = model(input_ids=ids).logits.float()
            except RuntimeError as error:
                _refuse(model, f"a failure ({str(error).splitlines()[0][:100]})")
    difference = float((got - expected).abs().max() / expected.std().clamp_min(1e-12))
    if not difference <= _TOLERANCE.get(next(model.parameters()).dtype, _COARSE):
        _refuse(model, f"logits off by {difference:.2g} of their spread")


def _refuse(model: Any, got: str) -> None:
    raise ModelError(
        f"model: expected pruned layers of {type(model).__name__} to compute what masked ones do, got {got}; "
        "write a file for its family (docs/add-a-family.md)"
    )


def _every_second(structure: ModelStructure) -> PruningPlan:
    kept = {}
    for group in structure.groups:
        length = group.units // group.sets
        kept[group.name] = [s * length + u for s in range(group.sets) for u in range(0, length, 2)]
    return plan_of_widths(structure, kept)
