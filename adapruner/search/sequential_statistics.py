"""Statistics of every layer's inputs measured after the earlier layers were pruned, as Wanda-sp's published code does.

FLAP's repository (An et al., arXiv 2312.11983, ``lib/prune.py``) prunes layer by layer: a layer's attention and FFN are scored by inputs
that come through the pruned layers before it. How many units a layer loses must not depend on later layers' scores then, so this is for
the allocation ``uniform`` and for metrics of the output projections' inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapruner.importance.statistics import UnitStatistics
from adapruner.models.forward import evaluation_mode
from adapruner.progress import progress_bar
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import cut_layer, restored
from adapruner.recovery.streams import Windows, layer_modules, run_dense, start


def collect_in_sequence(model: Any, problem: PruningProblem, recipe: Recipe, windows: Any, batch_size: int = 8) -> UnitStatistics:
    """The problem's statistics with the inputs of every layer measured behind pruned ones; the model is dense again afterwards.

    Args:
        model: the dense causal LM.
        problem: with the statistics of the dense model.
        recipe: what every layer is pruned by.
        windows: the calibration windows, ``input_ids`` and ``attention_mask`` each ``[n, seq_len]``.
        batch_size: windows in one forward pass of a layer.
    """
    structure, statistics = problem.structure, replace(problem.statistics, inputs=dict(problem.statistics.inputs))
    masks = windows.attention_mask.split(batch_size)
    with restored(model, structure), evaluation_mode(model), progress_bar("layers in sequence", structure.layers) as advance:
        runs = start(model, windows.input_ids, batch_size)
        stream = list(runs.starts)
        for modules in layer_modules(model, structure):
            inputs = [run_dense(modules, runs, hidden)[1] for hidden in stream]
            for group in structure.of_layer(modules.index):
                projection = model.get_submodule(group.output.module)
                states = [_without_padding(seen[projection][0], mask) for seen, mask in zip(inputs, masks, strict=True)]
                statistics.inputs["input_sum", group.name] = torch.cat([x.sum(1) for x in states]).cpu()
                statistics.inputs["input_square_sum", group.name] = torch.cat([x.square().sum(1) for x in states]).cpu()
            plan = make_plan(replace(problem, statistics=statistics), recipe)
            cut_layer(model, structure, plan, modules.index)
            _advance(modules, runs, stream)
            advance(modules.index + 1)
    return statistics


def _without_padding(states: Tensor, mask: Tensor) -> Tensor:
    return states.float() * mask.to(states.device)[..., None]


def _advance(modules: Any, runs: Windows, stream: list[Tensor]) -> None:
    for batch, hidden in enumerate(stream):
        stream[batch] = runs.call(modules.layer, modules.index, hidden)
