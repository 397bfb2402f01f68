"""The sequential form: earlier layers' errors are part of what a layer has to mend.

x are the kept inputs *in the pruned model so far*, y is the dense residual stream behind the block minus the pruned stream
before it (compare SlimGPT, arXiv 2412.18110, and "A Free Lunch in LLM Compression", arXiv 2510.14444). Attention and FFN are
refitted one after the other; one Gram matrix is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adapruner.distributed import Ranks
from adapruner.models.forward import answering
from adapruner.models.units import ModelStructure
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import cut_layer
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.recovery.hidden_states import HiddenStates
from adapruner.recovery.solve import RefitEquations, Solver, refit
from adapruner.recovery.solved_projections import SolvedProjections
from adapruner.recovery.streams import DenseStream, LayerModules, Windows, advance_dense, layer_modules


@dataclass
class Shares:
    """How much each window counts, per batch ``[batch]``, on the device of the model; who shares them, and what is solved already."""

    fitted: list[Tensor]
    held_out: list[Tensor] | None
    """Zero where ``fitted`` is not, and the other way round; ``None`` where nothing is held out."""
    ranks: Ranks | None = None
    """The processes that share the windows out, each with batches of its own: sums add up, and all get the same weights. ``None`` where
    this one has all windows."""
    solved: SolvedProjections | None = None
    """What a killed refit had solved, and this one adds to; ``None`` keeps nothing."""


def refit_in_sequence(
    model: nn.Module,
    structure: ModelStructure,
    plan: PruningPlan,
    windows: Windows,
    shares: Shares,
    config: ReconstructionConfig,
    dense: DenseStream | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Cuts and refits layer by layer, in place."""
    stream, pruned = windows.starts, windows.store.copy_of(windows.starts)
    changed = False
    for modules in layer_modules(model, structure):
        index = modules.index
        if dense is None:
            attention_ends = advance_dense(modules, windows, stream)
            ends = stream
        else:
            attention_ends, ends = dense.attention_ends[index], dense.ends[index]
        cut_layer(model, structure, plan, index)
        here = {g.kind for g in structure.groups if g.layer == index and not plan.keeps_all(g)}
        if here or changed:
            attended = _attend(modules, windows, pruned, attention_ends if changed or "attention" in here else None, shares, config)
            del attention_ends
            _refit_ffn(modules, windows, pruned, attended, ends, shares, config)
        else:
            for batch, hidden in enumerate(ends):
                pruned[batch] = hidden
        changed = changed or bool(here)
        if progress:
            progress(index + 1)


def _attend(
    modules: LayerModules,
    windows: Windows,
    pruned: HiddenStates,
    ends: HiddenStates | None,
    shares: Shares,
    config: ReconstructionConfig,
) -> HiddenStates | None:
    """What the attention adds to the pruned stream, per batch, refitted where there are ``ends`` to come near to.

    ``None`` where the layer has no attention. Without ``ends`` nothing has been removed so far.
    """
    if modules.o_proj is None:
        return None
    inputs = windows.store.empty(modules.o_proj.weight.shape[1], pruned[0])
    for batch, hidden in enumerate(pruned):
        inputs[batch] = windows.input_of(modules.o_proj, modules.layer, modules.index, hidden)
    if ends is not None:
        targets = (end.float() - hidden.float() for end, hidden in zip(ends, pruned, strict=True))
        refit_projection(modules.o_proj, modules.names["attention"], inputs, targets, shares, config)
    attended = windows.store.empty(pruned[0].shape[-1], pruned[0])
    for batch, x in enumerate(inputs):
        attended[batch] = modules.o_proj(x)
    return attended


def _refit_ffn(
    modules: LayerModules,
    windows: Windows,
    pruned: HiddenStates,
    attended: HiddenStates | None,
    ends: HiddenStates,
    shares: Shares,
    config: ReconstructionConfig,
) -> None:
    """Moves the pruned stream past the layer, in place."""
    inputs: HiddenStates = []
    if modules.down_proj is not None:
        inputs = windows.store.empty(modules.down_proj.weight.shape[1], pruned[0])
        for batch, x in enumerate(_ffn_inputs(modules, windows, pruned, attended)):
            inputs[batch] = x
    for batch, output in enumerate(attended or ()):
        pruned[batch] = pruned[batch] + output
    if modules.down_proj is None:
        return
    targets = (end.float() - hidden.float() for end, hidden in zip(ends, pruned, strict=True))
    refit_projection(modules.down_proj, modules.names["ffn"], inputs, targets, shares, config)
    for batch, x in enumerate(inputs):
        pruned[batch] = pruned[batch] + modules.down_proj(x)


def refit_projection(
    projection: Any, name: str, inputs: HiddenStates, targets: Iterable[Tensor], shares: Shares, config: ReconstructionConfig
) -> None:
    """Solves for one projection, so that projection(``inputs``) comes near ``targets`` ``[batch, seq_len, out]``; unless it is solved."""
    if shares.solved is not None and shares.solved.put(name, projection):
        return
    outputs, channels = projection.weight.shape
    device = projection.weight.device
    fitted = RefitEquations.empty(outputs, channels, device)
    held_out = RefitEquations.empty(outputs, channels, device) if shares.held_out else None
    for batch, (x, target) in enumerate(zip(inputs, targets, strict=True)):
        fitted.add(x, target, shares.fitted[batch])
        if held_out is not None and shares.held_out is not None:
            held_out.add(x, target, shares.held_out[batch])
    if shares.ranks is not None:
        shares.ranks.add_up(*fitted.tensors, *(held_out.tensors if held_out else ()))
    kept = projection.weight.detach().float()
    bias = None if projection.bias is None else projection.bias.detach().float()
    solve_and_refit(projection, name, fitted.less(kept, bias), held_out and held_out.less(kept, bias), config)
    if shares.ranks is not None:  # the same sums need not have the same solution on every kind of processor
        shares.ranks.make_equal(*(p.data for p in (projection.weight, projection.bias) if p is not None))
    if shares.solved is not None:
        shares.solved.keep(name, projection)


def solve_and_refit(
    projection: Any, name: str, fitted: RefitEquations, held_out: RefitEquations | None, config: ReconstructionConfig
) -> None:
    """Chooses the strength where there is a choice, then solves for all windows."""
    solver = Solver(config.penalty, config.constraint == "rotation", config.intercept and projection.bias is not None)
    if held_out is not None:
        solver = solver.best_of(config.choices, fitted, held_out, projection.weight.detach().float())
        fitted = fitted.plus(held_out)
    refit(projection, fitted, solver, name)


def _ffn_inputs(modules: LayerModules, windows: Windows, pruned: HiddenStates, attended: HiddenStates | None) -> Iterator[Tensor]:
    """What down_proj gets. The attention is not run again: its module answers with what is known already.

    Whether that module's answer is o_proj's output and nothing else is looked at in the first batch, which is run in full.
    """
    extra: tuple[None, ...] | None = None
    for batch, hidden in enumerate(pruned):
        if extra is not None and attended is not None and modules.attention is not None:
            with answering(modules.attention, (attended[batch], *extra)):
                yield windows.input_of(modules.down_proj, modules.layer, modules.index, hidden)
        elif batch > 0 or modules.attention is None:
            yield windows.input_of(modules.down_proj, modules.layer, modules.index, hidden)
        else:
            with _watching(modules.o_proj, modules.attention) as seen:
                yield windows.input_of(modules.down_proj, modules.layer, modules.index, hidden)
            output, answer = seen[modules.o_proj], seen[modules.attention]
            if isinstance(answer, tuple) and answer and answer[0] is output and all(rest is None for rest in answer[1:]):
                extra = answer[1:]


@contextmanager
def _watching(*modules: nn.Module) -> Iterator[dict[nn.Module, Any]]:
    """The outputs of the modules inside the block."""
    seen: dict[nn.Module, Any] = {}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        seen[module] = output

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
