"""The local form: inputs and outputs of the dense model itself, so that cached Gram matrices are all it needs of the data.

With C = sum x x^T of a projection's dense inputs, K the kept channels and R the removed ones,

    W' = (W C[:, K] + W_K L) (C[K, K] + L)^-1 = W_K + W_R C[R, K] (C[K, K] + L)^-1

with L the diagonal matrix of the ridge (SlimGPT, arXiv 2412.18110; ZipLM, arXiv 2302.04089). C is linear in the weights of the
samples. Weaker than the sequential form, and cheap enough to stand inside a trial of the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.importance.gram import GramMatrices
from adapruner.importance.moments import InputMoments
from adapruner.models.units import ModelStructure, UnitGroup
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import check_plan, cut_layer, restored
from adapruner.recovery.configuration import ReconstructionConfig, Ridge
from adapruner.recovery.hidden_states import HiddenStates
from adapruner.recovery.sequential import Shares, solve_and_refit
from adapruner.recovery.solve import RefitEquations, Solver, refit
from adapruner.recovery.streams import LayerModules, Windows, layer_modules, run_dense


@contextmanager
def pruned_and_refitted(
    model: nn.Module,
    structure: ModelStructure,
    plan: PruningPlan,
    grams: GramMatrices,
    part_weights: Tensor | None = None,
    ridge: Ridge = Ridge(),
    *,
    intercept: bool = True,
) -> Iterator[nn.Module]:
    """The model at the plan's widths with its output projections refitted inside the block; then the dense tensors come back.

    Like :func:`adapruner.pruning.surgery.pruned`, for a trial of a search that looks at what the reconstruction leaves.

    Args:
        grams: of the dense model, :func:`adapruner.importance.gram.collect_grams`.
        part_weights: ``[parts]``, how much each part of the pool counts; all samples alike when empty.
        ridge: lambda, relative to C[K, K].
        intercept: whether the bias of a projection that has one is refitted too.

    Raises:
        PlanError: if the plan was made for a model with other groups, or empties a layer.
        ModelError: if a solution is not finite.
    """
    check_plan(structure, plan)
    with restored(model, structure), torch.no_grad():
        dense = {g.name: _tensors(model.get_submodule(g.output.module)) for g in structure.groups}
        for layer in range(structure.layers):
            cut_layer(model, structure, plan, layer)
        for group in structure.groups:
            if not plan.keeps_all(group):
                moments = grams.moments(group.name, part_weights)
                refit_locally(model, group, plan.kept[group.name], moments, *dense[group.name], ridge=ridge, intercept=intercept)
        yield model


def refit_locally(
    model: nn.Module,
    group: UnitGroup,
    kept: list[int],
    moments: InputMoments,
    weight: Tensor,
    bias: Tensor | None,
    *,
    ridge: Ridge = Ridge(),
    intercept: bool = True,
) -> None:
    """Refits the output projection of one group that is cut already, in place (a new parameter).

    In single precision, with double precision where its Cholesky factor fails.

    Args:
        kept: the units that stay.
        moments: of the dense inputs, all channels.
        weight, bias: of the dense projection, ``[out, channels]`` and ``[out]``.

    Raises:
        ModelError: if the solution is not finite.
    """
    projection: Any = model.get_submodule(group.output.module)
    equations = local_equations(group, kept, moments, weight, bias, projection.bias)
    refit(projection, equations, Solver(ridge, intercept=intercept and projection.bias is not None, precision=torch.float32), group.name)


def local_equations(
    group: UnitGroup, kept: list[int], moments: InputMoments, weight: Tensor, bias: Tensor | None, present: Tensor | None
) -> RefitEquations:
    """What the kept channels leave of the dense output: r = W_R x_R + b - b', with b' the bias ``present`` now."""
    device = weight.device
    stays = torch.zeros(group.channels, dtype=torch.bool)
    stays[group.channels_of(kept)] = True
    inside, outside = stays.nonzero()[:, 0].to(device), (~stays).nonzero()[:, 0].to(device)
    gram, total, tokens = moments.gram.to(device), moments.total.to(device), moments.tokens.to(device)
    rows = gram.index_select(0, inside)
    lost = weight.index_select(1, outside).float()
    cross = lost @ rows.index_select(1, outside).T
    residual = lost @ total[outside]
    shift = _shift(bias, present)
    if shift is not None:
        cross += torch.outer(shift, total[inside])
        residual += shift * tokens
    return RefitEquations(InputMoments(rows.index_select(1, inside), total[inside], tokens), cross, residual)


def _shift(bias: Tensor | None, present: Tensor | None) -> Tensor | None:
    """The dense bias minus the present one ``[out]``; ``None`` where neither is."""
    if bias is None:
        return None if present is None else -present.detach().float()
    return bias.detach().float() - (0.0 if present is None else present.detach().float())


def _tensors(projection: Any) -> tuple[Tensor, Tensor | None]:
    return projection.weight.detach(), None if projection.bias is None else projection.bias.detach()


def refit_each_layer(
    model: nn.Module,
    structure: ModelStructure,
    plan: PruningPlan,
    windows: Windows,
    shares: Shares,
    config: ReconstructionConfig,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Cuts and refits layer by layer, in place; the Gram matrices of one layer are in memory at a time."""
    stream = windows.starts
    for modules in layer_modules(model, structure):
        groups = [g for g in structure.groups if g.layer == modules.index and not plan.keeps_all(g)]
        fitted, held_out = _layer_moments(modules, windows, stream, groups, shares, model)
        dense = {g.name: _tensors(model.get_submodule(g.output.module)) for g in groups}
        cut_layer(model, structure, plan, modules.index)
        for group in groups:
            projection: Any = model.get_submodule(group.output.module)
            if shares.solved is not None and shares.solved.put(group.output.module, projection):
                continue
            rest = (*dense[group.name], projection.bias)
            kept = plan.kept[group.name]
            equations = local_equations(group, kept, fitted.pop(group.name), *rest)
            checked = local_equations(group, kept, held_out.pop(group.name), *rest) if held_out else None
            solve_and_refit(projection, group.name, equations, checked, config)
            if shares.ranks is not None:
                shares.ranks.make_equal(*(p.data for p in (projection.weight, projection.bias) if p is not None))
            if shares.solved is not None:
                shares.solved.keep(group.output.module, projection)
        if progress:
            progress(modules.index + 1)


def _layer_moments(
    modules: LayerModules, windows: Windows, stream: HiddenStates, groups: list[UnitGroup], shares: Shares, model: nn.Module
) -> tuple[dict[str, InputMoments], dict[str, InputMoments]]:
    """Group name -> moments of the fitted and of the held-out windows; moves the dense stream past the layer, in place."""
    projections: dict[str, Any] = {g.name: model.get_submodule(g.output.module) for g in groups}
    sets = [shares.fitted, *([shares.held_out] if shares.held_out else [])]
    moments = [{g.name: InputMoments.empty(g.channels, projections[g.name].weight.device) for g in groups} for _ in sets]
    for batch, hidden in enumerate(stream):
        stream[batch], seen = run_dense(modules, windows, hidden)
        for weights, found in zip(sets, moments, strict=True):
            counted = weights[batch] > 0
            if not bool(counted.any()):
                continue
            rows: Any = slice(None) if bool(counted.all()) else counted
            for name, projection in projections.items():
                found[name].add(seen[projection][0][rows], weights[batch][rows][:, None])
    if shares.ranks is not None:
        shares.ranks.add_up(*(tensor for found in moments for of_group in found.values() for tensor in of_group.tensors))
    return moments[0], moments[1] if len(moments) > 1 else {}
