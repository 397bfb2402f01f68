"""Whether a model is at the widths, and has the biases, that its plan gives it."""

from __future__ import annotations

from typing import Any

from adapruner.errors import ModelError
from adapruner.export.meta_models import at_widths
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import check_plan


def check_widths(model: Any, structure: ModelStructure, plan: PruningPlan) -> None:
    """Compares a model tensor by tensor with what the plan leaves of the one it is for, on the meta device.

    Args:
        model: in the linear form of its family.
        structure: of the model before pruning.

    Raises:
        PlanError: if the plan is for other groups, or empties one.
        ModelError: if a tensor is missing, has another size, or is not one that surgery leaves.
    """
    check_plan(structure, plan)
    pruned = at_widths(model, structure.after(plan.kept), plan.output_bias)
    wanted, got = ({name: list(tensor.shape) for name, tensor in one.state_dict().items()} for one in (pruned, model))
    biases = {f"{group.output.module}.bias": group.output.module for group in structure.groups}
    for name in [*(n for n in got if n not in wanted), *(n for n in wanted if got.get(n) != wanted[n])]:
        if name in biases and (name in got) is not (name in wanted):
            words = ("a bias", "none") if name in wanted else ("no bias", "one")
            raise ModelError(f"model: expected {words[0]} in {biases[name]}, got {words[1]}; prune it by this plan first")
        if name in got and name in wanted and any(name == f"{module}.weight" for g in structure.groups for module, _ in g.tensors):
            width, found = next((w, f) for w, f in zip(wanted[name], got[name], strict=True) if w != f)
            module = name.rpartition(".")[0]
            raise ModelError(f"model: expected {module} to keep {width} rows or columns, got {found}; prune it by this plan first")
        reason = f"{name} of shape {got[name]} for {wanted.get(name) or 'none'}" if name in got else f"no {name}"
        raise ModelError(f"model: expected the tensors of {type(pruned).__name__}, got others ({reason}); merge adapters first")
