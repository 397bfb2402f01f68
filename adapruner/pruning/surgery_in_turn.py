"""A pruned model for a few forward passes, with the smaller copy of one decoder layer in memory at a time.

Where :func:`adapruner.pruning.surgery.pruned` holds the dense and the pruned weights at once, nearly twice the model, this holds the dense
ones and a layer; it copies the kept slices anew in every forward pass, which takes the longer the fewer tokens a pass has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from adapruner.models.families.modeling_adapruner import set_attributes
from adapruner.models.forward import hooked
from adapruner.models.tracing import find_decoder_layers
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import attributes_when_cut, check_plan, cut_linear, kept_slices, remember_layers, restored


@contextmanager
def pruned_in_turn(model: nn.Module, structure: ModelStructure, plan: PruningPlan) -> Iterator[nn.Module]:
    """The model answers at the plan's widths inside the block: a layer is cut when it is called, and dense again when it has answered.

    For plans that remove units alone and add no biases. Errors as in :func:`adapruner.pruning.surgery.prune_model`.
    """
    check_plan(structure, plan)
    with restored(model, structure), hooked(_hooks(model, structure, plan)):
        yield model


def copied_bytes(model: nn.Module, structure: ModelStructure, plan: PruningPlan) -> int:
    """What the pruned weights take that :func:`adapruner.pruning.surgery.pruned` holds beside the dense ones."""
    total = 0.0
    for group in structure.groups:
        if not plan.keeps_all(group):
            weights: list[Any] = [model.get_submodule(module).weight for module, _ in group.tensors]
            total += len(plan.kept[group.name]) / group.units * sum(weight.nbytes for weight in weights)
    return int(total)


def _hooks(model: nn.Module, structure: ModelStructure, plan: PruningPlan) -> Iterator[Any]:
    _, layers = find_decoder_layers(model)
    for index, layer in enumerate(layers):
        cut = _LayerCut(model, structure, plan, index)
        if cut.slices:
            yield layer.register_forward_pre_hook(cut.make)
            yield layer.register_forward_hook(cut.undo, always_call=True)  # also where memory ran out: the batch comes again, in parts


class _LayerCut:
    """Everything about one layer's cut that is the same in every forward pass."""

    def __init__(self, model: nn.Module, structure: ModelStructure, plan: PruningPlan, layer: int) -> None:
        groups = [group for group in structure.of_layer(layer) if not plan.keeps_all(group)]
        self.slices: list[tuple[nn.Linear, Tensor, int]] = [s for g in groups for s in kept_slices(model, g, plan.kept[g.name])]
        self._model, self._put_back = model, remember_layers(model, structure, range(layer, layer + 1))
        self._attributes = attributes_when_cut(model, structure, plan, layer) if groups else {}

    def make(self, *_: Any) -> None:
        """Before the layer."""
        for linear, positions, dim in self.slices:
            cut_linear(linear, positions, dim)
        set_attributes(self._model, self._attributes)

    def undo(self, *_: Any) -> None:
        """Behind it."""
        self._put_back()
