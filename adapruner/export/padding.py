"""Zero padding to uniform widths, for engines that know only stock classes.

Every layer gets the width of the widest one of its kind: units that were removed come back, with zeros for weights, so that they
add nothing. The folder loads anywhere and computes the same; it saves only what the widest layer saves.
:func:`adapruner.pruning.before_pruning.remove_padding` takes the zeros out again where such a folder is pruned or trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapruner.errors import ModelError
from adapruner.export.meta_models import at_widths, dense_on_meta
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure, UnitGroup


def pad_to_uniform(model: Any, structure: ModelStructure, output_bias: bool = False) -> tuple[Any, ModelStructure]:
    """A model with the pruned one's tensors at the padded widths, and its structure.

    Args:
        model: pruned, in the linear form of its family. It is not changed; tensors that are not padded are shared.
        structure: of the model before or after pruning; what counts is what its configuration gave every layer.
        output_bias: whether every output projection has a bias.

    Returns:
        A model to be saved, not run: its buffers are on the meta device.

    Raises:
        ModelError: if layers have different numbers of experts: a router's choice cannot be padded.
    """
    pruned, dense = trace_structure(model), trace_structure(dense_on_meta(model, structure))
    pairs = [(group, _padded_group(group, dense, pruned)) for group in pruned.groups]
    wide = replace(dense, groups=tuple(target for _, (target, _) in pairs))
    padded = at_widths(model, wide, output_bias)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for group, (target, places) in pairs:
        for module, dim in group.tensors:
            rows = torch.empty(group.size(module), dtype=torch.long)
            for member, wider in zip(group.members, target.members, strict=True):
                if member.module == module:
                    rows[member.index] = wider.index[places]
            state[f"{module}.weight"] = _scatter(state[f"{module}.weight"], rows, dim, target.size(module))
            if dim == 0 and f"{module}.bias" in state:
                state[f"{module}.bias"] = _scatter(state[f"{module}.bias"], rows, 0, target.size(module))
    padded.load_state_dict(state, strict=True, assign=True)
    padded.tie_weights()
    padded.generation_config = model.generation_config
    return padded, wide


def _padded_group(group: UnitGroup, dense: ModelStructure, pruned: ModelStructure) -> tuple[UnitGroup, Tensor]:
    """The group at the widths of the widest layer, and ``[channels]``: where each of its channels comes to lie there.

    Heads that have numbers keep their order among those that come back (ALiBi's slopes go by the number).
    """
    alike = [_runs(other) for other in pruned.groups if other.kind == group.kind]
    (runs, length), whole = (max(values) for values in zip(*alike, strict=True)), dense.group(group.layer, group.kind)
    own, width = _runs(group)
    if group.kind == "ffn" and own != runs:
        raise ModelError(f"pad: expected equally many experts in all layers, got {own} and {runs}; export without pad")
    numbers = list(range(own))
    if group.head_numbers and width == group.head_dim:
        back = [n for n in range(_runs(whole)[0]) if n not in group.head_numbers]
        kept = sorted([*group.head_numbers, *back[: runs - own]])
        numbers = [kept.index(number) for number in group.head_numbers]
    else:
        kept = list(range(runs))
    inside = (torch.tensor(kept)[:, None] * _runs(whole)[1] + torch.arange(length)).flatten()
    target = whole.narrowed(inside, *((runs, 1) if group.kind == "attention" else (runs * length, runs)))
    return target, (torch.tensor(numbers)[:, None] * length + torch.arange(width)).flatten()


def _runs(group: UnitGroup) -> tuple[int, int]:
    """Number of KV heads (of experts) and channels of each."""
    runs = group.units if group.kind == "attention" else group.sets
    return runs, group.channels // runs


def _scatter(tensor: Tensor, positions: Tensor, dim: int, size: int) -> Tensor:
    """The wider tensor that has these rows (or columns) at the given positions, and zeros elsewhere."""
    shape = list(tensor.shape)
    shape[dim] = size
    return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device).index_copy_(dim, positions.to(tensor.device), tensor)
