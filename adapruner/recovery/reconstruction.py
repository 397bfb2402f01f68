"""Closed-form reconstruction: what is left of each output projection is refitted to the dense block's output. No training.

After the units of a layer are removed, o_proj and then down_proj minimise

    sum_t || W' x_t + b - y_t ||^2 + sum_c lambda_c || W'_c - W_kept,c ||^2

over the calibration tokens. What x and y are is the *form*: :mod:`adapruner.recovery.sequential`, the pruned model so far
against the dense residual stream, or :mod:`adapruner.recovery.local`, the dense model's own inputs and outputs. What W' may be
is the *constraint*: anything near W_kept (ridge), or W_kept turned by an orthogonal matrix
(:mod:`adapruner.recovery.rotation`). :func:`reconstruction_gib` says what it takes: with 512 windows of 128 tokens
LLaMA-7B in bfloat16 needs 21.0 GiB in all, so it fits into 24 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError, DataError, ModelError
from adapruner.freed_memory import give_back_freed_memory
from adapruner.models.forward import evaluation_mode
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import check_plan
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.recovery.local import refit_each_layer
from adapruner.recovery.sequential import Shares, refit_in_sequence
from adapruner.recovery.solved_projections import SolvedProjections
from adapruner.recovery.streams import (
    DenseStream,
    choose_windows,
    has_plain_residual,
    record_dense_stream,
    start,
    states_folder,
    states_gib,
)

#: Every so many of the windows that count are held out where a strength is searched.
HELD_OUT_EVERY = 8

__all__ = [
    "DenseStream",
    "ReconstructionConfig",
    "fitting_form",
    "prune_and_reconstruct",
    "reconstruction_gib",
    "record_dense_stream",
    "too_few_tokens",
]


@torch.no_grad()
def prune_and_reconstruct(
    model: nn.Module,
    structure: ModelStructure,
    plan: PruningPlan,
    input_ids: Tensor,
    config: ReconstructionConfig,
    *,
    sample_weights: Tensor | None = None,
    dense: DenseStream | None = None,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
    solved: SolvedProjections | None = None,
) -> None:
    """Cuts a dense model down to the plan, in place, layer by layer, refitting o_proj and down_proj of each layer.

    The configuration is not touched (:func:`adapruner.pruning.surgery.write_widths` does that).

    Args:
        input_ids: calibration windows ``[n, seq_len]`` without padding.
        sample_weights: ``[n]``, how much each window counts; all alike when empty.
        dense: what :func:`record_dense_stream` recorded of the dense model on the same windows with the same
            configuration; saves that part of the work where many plans of one model are refitted.
        progress: called with the number of layers done.
        ranks: processes that all refit this plan on these windows: each takes a share of the batches, and all end with the same weights.
            ``None`` where this one works alone. Not with ``dense``.
        solved: where every projection is kept as it is solved, and taken from where it is; the caller's key says of which refit.

    Raises:
        ConfigurationError: if hidden states go to a folder that is not there, or has too little room.
        DataError: if there is no window, or ``dense`` is of other windows.
        PlanError: if the plan was made for a model with other groups, or empties a layer.
        ModelError: if the residual stream is not attention, then FFN, each added to it; or a solution is not finite.
    """
    check_plan(structure, plan)
    if solved is not None and solved.put_whole(model, structure, plan):
        return
    if structure.left_whole and config.form == "sequential":
        kind, reason = structure.left_whole[0]
        raise ModelError(f"reconstruction.form: expected 'local' where {kind} stays whole ({reason}), got 'sequential'; see fitting_form")
    picks = choose_windows(len(input_ids), config)
    if dense is not None:
        dense.check(input_ids[picks], config.batch_size)
    weights = _window_weights(sample_weights, picks, config)
    if ranks is not None and dense is None and -(-len(picks) // config.batch_size) >= ranks.size > 1:
        rows = _rows_of_rank(len(picks), config.batch_size, ranks)
        picks, weights = picks[rows], [part[rows] for part in weights]
    else:
        ranks = None
    with evaluation_mode(model):
        ids = input_ids[picks]
        if dense is None:
            windows = start(model, ids, config.batch_size, _states_folder(model, structure, ids, config, ranks))
        else:
            windows = dense.windows
            if config.form == "local":  # which moves them on; the next plan starts from them
                windows = replace(windows, starts=windows.store.copy_of(windows.starts))
        device = windows.starts[0].device
        shares = replace(_shares_of(weights, config.batch_size, device, ranks), solved=solved)
        if config.form == "local":
            refit_each_layer(model, structure, plan, windows, shares, config, progress)
        else:
            refit_in_sequence(model, structure, plan, windows, shares, config, dense, progress)
    del windows, shares
    if solved is not None:
        solved.keep_whole()
    give_back_freed_memory()


def fitting_form(model: nn.Module, structure: ModelStructure, input_ids: Tensor, config: ReconstructionConfig) -> ReconstructionConfig:
    """The configuration, with the local form where the family's layers do not let the sequential one be solved.

    That is where something stands between a projection and the residual stream (norms in Gemma 2, a factor in Granite), and
    where a kind is left whole, so that its share of the stream is not known.

    Args:
        input_ids: calibration windows ``[n, seq_len]``; the first is run through the first layer.
    """
    if config.form == "local" or has_plain_residual(model, structure, input_ids):
        return config
    return replace(config, form="local")


def _states_folder(model: nn.Module, structure: ModelStructure, ids: Tensor, config: ReconstructionConfig, ranks: Ranks | None) -> Any:
    """:func:`adapruner.recovery.streams.states_folder`; what one of several processes is refused, all are, before any waits for it."""
    folder, refusal = None, None
    try:
        folder = states_folder(model, structure, ids, config)
    except ConfigurationError as error:
        refusal = error
    refused = [error for error in (ranks.gather(refusal) if ranks else [refusal]) if error is not None]
    if refused:
        raise refused[0]
    return folder


def _window_weights(weights: Tensor | None, picks: Tensor, config: ReconstructionConfig) -> list[Tensor]:
    """The chosen windows' weights ``[n]``, mean 1; with candidates, every eighth that counts (or the last) is in a second part."""
    chosen = torch.ones(len(picks)) if weights is None else weights[picks].float().cpu()
    if not bool(torch.isfinite(chosen).all()):
        raise DataError("reconstruction: expected finite weights of the windows, got inf or nan; give finite sample_weights")
    if float(chosen.sum()) <= 0:
        chosen = torch.ones(len(picks))
    chosen = chosen * len(chosen) / chosen.sum()
    counted = chosen.nonzero()[:, 0]
    if not config.choices or len(counted) < 2:
        return [chosen]
    held = counted[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] if len(counted) >= HELD_OUT_EVERY else counted[-1:]
    apart = torch.zeros_like(chosen)
    apart[held] = chosen[held]
    return [chosen - apart, apart]


def _shares_of(weights: list[Tensor], batch_size: int, device: torch.device, ranks: Ranks | None) -> Shares:
    fitted, *held_out = [[part.to(device) for part in whole.split(batch_size)] for whole in weights]
    return Shares(fitted, held_out[0] if held_out else None, ranks)


def _rows_of_rank(windows: int, batch_size: int, ranks: Ranks) -> Tensor:
    """Every so manieth batch, so that every rank has some of every source."""
    return torch.cat(torch.arange(windows).split(batch_size)[ranks.rank :: ranks.size])


def too_few_tokens(structure: ModelStructure, windows: int, seq_len: int, config: ReconstructionConfig) -> str | None:
    """What to say where a projection has more channels than the refit sees tokens, whose noise it then fits; ``None`` where all is well.

    Measured on Qwen2.5-Coder-0.5B at 20 %: perplexity 20.9 before and 23.0 after a refit on 3,072 tokens for 4,864 channels.
    """
    tokens, widest = min(config.samples or windows, windows) * seq_len, max((g.channels for g in structure.groups), default=0)
    if tokens >= widest:
        return None
    return (
        f"reconstruction: {tokens:,} tokens for projections of up to {widest:,} channels, which may make the model worse; raise "
        "samples_per_source of data.calibration or data.reconstruction, and reconstruction.samples, or give a larger reconstruction.ridge"
    )


def reconstruction_gib(model: Any, structure: ModelStructure, windows: int, seq_len: int, config: ReconstructionConfig) -> float:
    """GiB that :func:`prune_and_reconstruct` needs at most, the model's weights included, a ``dense`` stream not.

    Streams hold hidden states of all windows in the model's dtype (:func:`adapruner.recovery.streams.states_gib`), none where they go
    to files. One Gram matrix in single precision with its copy and its Cholesky factor in double; in the local form both of a layer.
    Searching the strength holds a second and a third Gram matrix. One batch of a layer's activations comes on top.
    """
    kept = config.samples or windows
    tokens, batch = min(kept, windows) * seq_len, min(config.batch_size, windows) * seq_len
    value = next(model.parameters()).element_size()
    hidden, widest = model.config.hidden_size, max(g.channels for g in structure.groups)
    per_layer = sum(g.channels**2 for g in structure.groups) // structure.layers
    copies = 3 if config.choices else 1
    states = states_gib(model, structure, tokens, config)
    streams = 0.0 if states > config.states_gib else states * 2**30
    grams = 4 * (per_layer * min(copies, 2) + 2 * widest**2) if config.form == "local" else 4 * copies * widest**2
    sides = 32 if copies == 1 else 52  # bytes for each value of the weights: right-hand sides and solution
    solving = 16 * widest**2 + sides * hidden * widest  # and the Gram matrix and its factor in double precision
    activations = batch * (4 * widest + 4 * hidden) * max(4, value)
    weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
    return float(weights + streams + grams + solving + activations) / 2**30
