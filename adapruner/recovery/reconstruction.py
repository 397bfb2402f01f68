"""Closed-form reconstruction: what is left of each output projection is refitted to the dense block's output.

After the units of a layer are removed, o_proj and then down_proj minimise

    sum_t || W' x_t + b - y_t ||^2 + lambda || W' - W_kept ||^2

over the calibration tokens, with x the kept inputs *in the pruned model so far* and y the dense residual stream after the
block minus the pruned stream before it, so that earlier layers' errors are corrected too (the sequential form; compare
SlimGPT, arXiv 2412.18110, and "A Free Lunch in LLM Compression", arXiv 2510.14444). One Cholesky solve per projection,
one layer's Gram matrix in memory at a time, no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.anatomy.tracing import find_decoder_layers
from adapruner.anatomy.units import ModelAnatomy
from adapruner.errors import ConfigurationError, DataError, ModelError
from adapruner.evaluation.mode import evaluation_mode
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import check_plan, cut_layer


@dataclass(frozen=True)
class ReconstructionConfig:
    """Strength and size of the refit."""

    ridge: float = 0.01
    """lambda, relative to the mean diagonal of the Gram matrix; more of it stays nearer to the kept weights."""
    samples: int | None = None
    """Calibration windows to use; all of them when empty. More is better and costs time in proportion."""
    batch_size: int = 8
    """Windows in one forward pass of a layer."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise ConfigurationError(f"reconstruction.ridge: expected a positive number, got {self.ridge}; give 0.01")
        if self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise ConfigurationError(
                f"reconstruction: expected batch_size and samples above 0, got {self.batch_size}, {self.samples}; give positive numbers"
            )


@dataclass
class _Streams:
    """Hidden states of all batches, ``[batch, seq_len, hidden]`` each, before the current layer."""

    dense: list[Tensor]
    pruned: list[Tensor]
    weights: list[Tensor]
    """``[batch, 1, 1]`` per batch: square root of each sample's weight, times the number of samples."""
    arguments: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Batch size -> per layer, the keyword arguments the model calls it with (masks, rotary tables)."""


@torch.no_grad()
def prune_and_reconstruct(
    model: nn.Module,
    anatomy: ModelAnatomy,
    plan: PruningPlan,
    input_ids: Tensor,
    config: ReconstructionConfig,
    *,
    sample_weights: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Cuts a dense model down to the plan, in place, layer by layer, refitting o_proj and down_proj of each layer.

    The configuration is not touched (:func:`adapruner.pruning.surgery.write_widths` does that).

    Args:
        input_ids: calibration windows ``[n, seq_len]`` without padding.
        sample_weights: ``[n]``, how much each window counts; all alike when empty.
        progress: called with the number of layers done.

    Raises:
        DataError: if there is no window.
        ModelError: if the residual stream is not attention, then FFN, each added to it; or a solution is not finite.
    """
    check_plan(anatomy, plan)
    if len(input_ids) == 0:
        raise DataError("reconstruction: expected calibration windows, got none; add text to data.calibration.sources")
    _, layers = find_decoder_layers(model)
    with evaluation_mode(model):
        streams = _start(model, layers, *_choose(input_ids, sample_weights, config), config.batch_size)
        for index, layer in enumerate(layers):
            _advance(model, anatomy, plan, index, layer, streams, config)
            if progress:
                progress(index + 1)


def _choose(input_ids: Tensor, weights: Tensor | None, config: ReconstructionConfig) -> tuple[Tensor, Tensor]:
    """Evenly spaced windows, so that every source of a pool sorted by source is there, and their weights (mean 1)."""
    count = min(config.samples or len(input_ids), len(input_ids))
    picks = torch.linspace(0, len(input_ids) - 1, count).round().long()
    chosen = torch.ones(count) if weights is None else weights[picks].float()
    total = chosen.sum()
    if float(total) <= 0:
        chosen, total = torch.ones(count), torch.tensor(float(count))
    return input_ids[picks], chosen * count / total


def _start(model: nn.Module, layers: nn.ModuleList, ids: Tensor, weights: Tensor, batch_size: int) -> _Streams:
    device = next(model.parameters()).device
    streams = _Streams([], [], [w.sqrt().to(device)[:, None, None] for w in weights.split(batch_size)])
    for batch in ids.to(device).split(batch_size):
        calls: list[dict[str, Any]] = []
        first: list[Tensor] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], first: Any = first, calls: Any = calls) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if not first:
                first.append(hidden)
            calls.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

        if len(batch) in streams.arguments:  # only the first layer's input is needed: stop there
            with _stopping_before(layers[0], first):
                model(batch, use_cache=False)
        else:
            handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
            try:
                model(batch, use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
            streams.arguments[len(batch)] = calls
        streams.dense.append(first[0])
    streams.pruned = list(streams.dense)
    return streams


class _Stop(Exception):
    pass


@contextmanager
def _stopping_before(layer: nn.Module, box: list[Tensor]) -> Iterator[None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        box.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()


def _advance(
    model: nn.Module,
    anatomy: ModelAnatomy,
    plan: PruningPlan,
    index: int,
    layer: nn.Module,
    streams: _Streams,
    config: ReconstructionConfig,
) -> None:
    """Moves both streams past one layer; cuts and refits it on the way."""
    names = {g.kind: g.output.module for g in anatomy.groups if g.layer == index}
    o_proj, down_proj = (model.get_submodule(names[k]) if k in names else None for k in ("attention", "ffn"))
    attention_ends, dense_ends = [], []
    for batch, hidden in enumerate(streams.dense):
        output, seen = _run(layer, hidden, streams, index, [o_proj, down_proj])
        if batch == 0 and index == 0:
            _check_residual(hidden, output, [seen[p][1] for p in (o_proj, down_proj) if p is not None])
        attention_ends.append(hidden if o_proj is None else hidden + seen[o_proj][1])
        dense_ends.append(output)
    changed = any(not plan.keeps_all(g) for g in anatomy.groups if g.layer <= index)
    cut_layer(model, anatomy, plan, index)
    if not changed:
        streams.pruned = list(dense_ends)
    else:
        starts = streams.pruned
        if o_proj is not None:
            inputs = [_input_of(layer, hidden, streams, index, o_proj) for hidden in starts]
            _refit(o_proj, inputs, starts, attention_ends, streams.weights, index, config)
            starts = [hidden + o_proj(x) for hidden, x in zip(starts, inputs, strict=True)]
        if down_proj is not None:
            inputs = [_input_of(layer, hidden, streams, index, down_proj) for hidden in streams.pruned]
            _refit(down_proj, inputs, starts, dense_ends, streams.weights, index, config)
            starts = [hidden + down_proj(x) for hidden, x in zip(starts, inputs, strict=True)]
        streams.pruned = starts
    streams.dense = dense_ends


def _refit(
    projection: Any,
    inputs: list[Tensor],
    starts: list[Tensor],
    ends: list[Tensor],
    weights: list[Tensor],
    index: int,
    config: ReconstructionConfig,
) -> None:
    """Solves for one projection, so that ``starts`` + projection(``inputs``) comes near ``ends``, the dense stream there."""
    width = projection.weight.shape[1]
    gram = torch.zeros(width, width, device=projection.weight.device)
    cross = torch.zeros(projection.weight.shape[0], width, device=projection.weight.device)
    for x, start, end, weight in zip(inputs, starts, ends, weights, strict=True):
        target = (end - start).float()
        if projection.bias is not None:
            target = target - projection.bias.float()
        rows = (x.float() * weight).flatten(0, 1)
        gram.addmm_(rows.T, rows)
        cross.addmm_((target * weight).flatten(0, 1).T, rows)
    kept = projection.weight.float()
    strength = config.ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    gram.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(gram.double())
    solution = torch.cholesky_solve((cross + strength * kept).T.double(), factor).T.float()
    if int(failed) or not bool(torch.isfinite(solution).all()):
        raise ModelError(
            f"reconstruction: expected a finite solution in layer {index}, got none; raise reconstruction.ridge above {config.ridge}"
        )
    # A new parameter: where nothing was cut, the old one is the dense model's own tensor, which `restored` puts back.
    projection.weight = nn.Parameter(solution.to(projection.weight.dtype), requires_grad=projection.weight.requires_grad)


def _input_of(layer: nn.Module, hidden: Tensor, streams: _Streams, index: int, projection: nn.Module) -> Tensor:
    """What the projection gets when the layer gets ``hidden``; the layer stops there."""
    box: list[Tensor] = []
    with _stopping_before(projection, box):
        layer(hidden, **streams.arguments[len(hidden)][index])
    return box[0]


def _run(
    layer: nn.Module, hidden: Tensor, streams: _Streams, index: int, watch: list[Any]
) -> tuple[Tensor, dict[Any, tuple[Tensor, Tensor]]]:
    """The layer's output, and input and output of each watched projection."""
    seen: dict[Any, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = (arguments[0], output)

    handles = [module.register_forward_hook(record) for module in watch if module is not None]
    try:
        output = layer(hidden, **streams.arguments[len(hidden)][index])
    finally:
        for handle in handles:
            handle.remove()
    return (output[0] if isinstance(output, tuple) else output), seen


def _check_residual(hidden: Tensor, output: Tensor, parts: list[Tensor]) -> None:
    """The refit's targets assume output = input + attention + FFN; a family that adds otherwise is refused."""
    expected = hidden + sum(parts)
    if not torch.allclose(expected.float(), output.float(), rtol=1e-2, atol=1e-2 * float(output.float().abs().mean())):
        raise ModelError(
            "reconstruction: expected a layer's output to be its input plus attention plus FFN, got another residual form; "
            "set pruning.reconstruction to null for this family"
        )
