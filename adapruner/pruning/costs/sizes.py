"""What a dense model weighs and computes besides its units: numbers that its structure, made of shapes alone, lacks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from adapruner.models.units import ModelStructure


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a dense model, for budgets of multiply-accumulates and of memory."""

    fixed_macs: int
    """Multiply-accumulates per token outside all units: the output head, and any other linear layer without units."""
    weight_bytes: int
    """Bytes of all weights as stored: parameters and persistent buffers, tied tensors once."""
    bytes_per_parameter: float
    """Mean over the coupled tensors of the units: 2 for bfloat16, 4 for float32."""


def measure_sizes(model: nn.Module, structure: ModelStructure) -> ModelSizes:
    """Reads shapes and types only: nothing runs, and the meta device will do.

    Linear layers stand for all matrix products outside attention, as in the families that can be traced.
    """
    coupled = {m.module for g in structure.groups for m in g.members}
    others = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in coupled]
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    weights = [w for name in sorted(coupled) if isinstance(w := model.get_submodule(name).weight, Tensor)]
    return ModelSizes(
        fixed_macs=sum(m.weight.numel() for m in others),
        weight_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
        bytes_per_parameter=sum(w.numel() * w.element_size() for w in weights) / max(1, sum(w.numel() for w in weights)),
    )
