"""Hidden states of all calibration windows, one decoder layer at a time.

A layer is called with the keyword arguments (masks, rotary tables) that the model itself calls it with; they are recorded
once for each batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import DataError, ModelError
from adapruner.models.forward import evaluation_mode
from adapruner.models.sequences import in_sequences
from adapruner.models.smaller_batches import within_memory
from adapruner.models.tracing import find_decoder_layers
from adapruner.models.units import ModelStructure
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.recovery.hidden_states import HiddenStates, StateStore, folder_with_room


@dataclass
class Windows:
    """The chosen windows in batches, and how to call each layer."""

    ids: Tensor
    """``[windows, seq_len]``."""
    starts: HiddenStates
    """Per batch ``[batch, seq_len, hidden]``: the first layer's input."""
    arguments: dict[int, list[dict[str, Any]]]
    """Batch size -> per layer, the keyword arguments the model calls it with."""
    store: StateStore
    """Where hidden states of the windows are kept."""

    def call(self, layer: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """The layer's output ``[batch, seq_len, hidden]``."""
        output = layer(hidden, **self.arguments[len(hidden)][index])
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]

    def input_of(self, projection: nn.Module, layer: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """What the projection gets when the layer gets ``hidden``; the layer stops there."""
        box: list[Tensor] = []
        with stopping_before(projection, box):
            self.call(layer, index, hidden)
        return in_sequences(box[0], len(hidden))


@dataclass
class LayerModules:
    """One decoder layer and the projections that add to the residual stream."""

    index: int
    layer: nn.Module
    names: dict[str, str]
    """``attention``, ``ffn`` -> dotted name of the output projection."""
    o_proj: Any
    down_proj: Any
    attention: nn.Module | None
    """The module around o_proj."""


@dataclass
class DenseStream:
    """The dense model's residual stream behind every attention and every layer, for refitting many plans of one model.

    Memory: 2 x layers x windows x seq_len x hidden values of the model's dtype: 0.8 GB for 8 layers, width 192 and
    512 windows of 128 tokens in float32; too much for a 7B. Saves about a third of each refit's time.
    """

    windows: Windows
    attention_ends: list[HiddenStates] = field(default_factory=list)
    """Per layer and batch, ``[batch, seq_len, hidden]``."""
    ends: list[HiddenStates] = field(default_factory=list)

    def is_of(self, input_ids: Tensor, batch_size: int) -> bool:
        """Whether it was recorded on these windows ``[n, seq_len]`` in batches of this size."""
        sizes = [len(batch) for batch in input_ids.split(batch_size)]
        return torch.equal(self.windows.ids.cpu(), input_ids.cpu()) and [len(batch) for batch in self.windows.starts] == sizes

    def check(self, input_ids: Tensor, batch_size: int) -> None:
        """Refuses a stream of other windows or other batches.

        Raises:
            DataError: in both cases.
        """
        if not self.is_of(input_ids, batch_size):
            raise DataError("dense: expected the stream of these windows and batches, got another; record it with the same settings")


@torch.no_grad()
def record_dense_stream(model: nn.Module, structure: ModelStructure, input_ids: Tensor, config: ReconstructionConfig) -> DenseStream:
    """One pass of the dense model over the windows that ``prune_and_reconstruct`` would choose of ``input_ids`` ``[n, seq_len]``.

    Raises:
        DataError: if there is no window.
        ModelError: if the residual stream is not attention, then FFN, each added to it.
    """
    ids = input_ids[choose_windows(len(input_ids), config)]
    with evaluation_mode(model):
        stream = DenseStream(start(model, ids, config.batch_size))
        hidden: HiddenStates = list(stream.windows.starts)
        for modules in layer_modules(model, structure):
            stream.attention_ends.append(advance_dense(modules, stream.windows, hidden))
            stream.ends.append(list(hidden))
    return stream


@dataclass
class SharedStream:
    """The dense stream of the plan that was refitted last, for the next one that is refitted on the same windows."""

    last: DenseStream | None = None

    def of(self, model: nn.Module, structure: ModelStructure, input_ids: Tensor, config: ReconstructionConfig) -> DenseStream | None:
        """The stream on the windows that would be chosen of ``input_ids`` ``[n, seq_len]``: the last one if it is of these, else a new one.

        Args:
            model: dense now.

        Returns:
            ``None`` where it would take more than ``config.shared_gib``, or the local form has no use for it.
        """
        chosen = input_ids[choose_windows(len(input_ids), config)]
        if self.last is not None and self.last.is_of(chosen, config.batch_size):
            return self.last
        self.last = None  # before another is recorded
        gib = dense_stream_gib(model, structure, chosen)
        if config.form == "sequential" and gib <= config.shared_gib and _has_room(next(model.parameters()).device, gib):
            self.last = within_memory(lambda: record_dense_stream(model, structure, input_ids, config))
        return self.last


def states_folder(model: Any, structure: ModelStructure, ids: Tensor, config: ReconstructionConfig) -> Path | None:
    """Where the hidden states of these windows ``[n, seq_len]`` go: a folder where they take more than ``config.states_gib``.

    Raises:
        ConfigurationError: if that folder is not there or has too little room.
    """
    gib = states_gib(model, structure, ids.numel(), config)
    return folder_with_room(config.states_folder, gib) if gib > config.states_gib else None


def states_gib(model: Any, structure: ModelStructure, tokens: int, config: ReconstructionConfig) -> float:
    """GiB of hidden states of so many tokens during a refit.

    Sequential: the dense and the pruned stream, the attention's part, and one projection's inputs. Local: the dense stream.
    """
    widest = max((g.channels for g in structure.groups), default=0)
    width = model.config.hidden_size * (1 if config.form == "local" else 3) + (0 if config.form == "local" else widest)
    return float(tokens * width * next(model.parameters()).element_size()) / 2**30


def _has_room(device: torch.device, gib: float) -> bool:
    """Whether a GPU keeps three times as much for the refits themselves."""
    return device.type != "cuda" or torch.cuda.mem_get_info(device)[0] >= 4 * gib * 2**30


def dense_stream_gib(model: Any, structure: ModelStructure, input_ids: Tensor) -> float:
    """GiB of a :class:`DenseStream` on these windows ``[n, seq_len]``."""
    states = 2 * structure.layers + 1
    return float(states * input_ids.numel() * model.config.hidden_size * next(model.parameters()).element_size()) / 2**30


def choose_windows(count: int, config: ReconstructionConfig) -> Tensor:
    """Evenly spaced positions, so that every source of a pool sorted by source is there.

    Raises:
        DataError: if there is no window.
    """
    if count == 0:
        raise DataError("reconstruction: expected calibration windows, got none; add text to data.calibration.sources")
    return torch.linspace(0, count - 1, min(config.samples or count, count)).round().long()


def start(model: nn.Module, ids: Tensor, batch_size: int, folder: Path | None = None) -> Windows:
    """Runs the model once per batch size for the layers' arguments, else only up to the first layer.

    Args:
        folder: where hidden states are kept in files; ``None`` keeps them on the device.
    """
    _, layers = find_decoder_layers(model)
    device = next(model.parameters()).device
    trunk: Any = getattr(model, "base_model", model)  # logits of a batch would be the largest tensor of the refit
    batches = ids.split(batch_size)
    store, starts = StateStore([(len(batch), ids.shape[1]) for batch in batches], folder), None
    arguments: dict[int, list[dict[str, Any]]] = {}
    for number, batch in enumerate(batches):
        calls: list[dict[str, Any]] = []
        first: list[Tensor] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], first: Any = first, calls: Any = calls) -> None:
            if not first:
                first.append(args[0] if args else kwargs["hidden_states"])
            calls.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

        if len(batch) in arguments:
            with stopping_before(layers[0], first):
                trunk(batch.to(device), use_cache=False)
        else:
            handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
            try:
                trunk(batch.to(device), use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
            arguments[len(batch)] = calls
        starts = store.empty(first[0].shape[-1], first[0]) if starts is None else starts
        starts[number] = first[0]
    return Windows(ids, [] if starts is None else starts, arguments, store)


def layer_modules(model: nn.Module, structure: ModelStructure) -> Iterator[LayerModules]:
    """The decoder layers in order."""
    _, layers = find_decoder_layers(model)
    for index, layer in enumerate(layers):
        names: dict[str, str] = {g.kind: g.output.module for g in structure.groups if g.layer == index}
        o_proj, down_proj = (model.get_submodule(names[kind]) if kind in names else None for kind in ("attention", "ffn"))
        attention = None if o_proj is None else model.get_submodule(names["attention"].rpartition(".")[0])
        yield LayerModules(index, layer, names, o_proj, down_proj, attention)


def run_dense(modules: LayerModules, windows: Windows, hidden: Tensor) -> tuple[Tensor, dict[Any, tuple[Tensor, Tensor]]]:
    """The output of a layer for one batch, and input and output of each of its output projections."""
    seen: dict[Any, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = (in_sequences(arguments[0], len(hidden)), in_sequences(output, len(hidden)))

    handles = [p.register_forward_hook(record) for p in (modules.o_proj, modules.down_proj) if p is not None]
    try:
        output = windows.call(modules.layer, modules.index, hidden)
    finally:
        for handle in handles:
            handle.remove()
    return output, seen


def advance_dense(modules: LayerModules, windows: Windows, hidden: HiddenStates) -> HiddenStates:
    """Moves the dense stream past one layer, in place, batch by batch; returns the stream behind the attention.

    Args:
        hidden: per batch ``[batch, seq_len, hidden]``; replaced by the layer's outputs.

    Raises:
        ModelError: in layer 0, if the residual stream is not attention, then FFN, each added to it.
    """
    first = hidden[0]
    attention_ends = windows.store.empty(first.shape[-1], first)
    for batch, before in enumerate(hidden):
        hidden[batch], seen = run_dense(modules, windows, before)
        if batch == 0 and modules.index == 0:
            _check_residual(before, hidden[batch], [output for _, output in seen.values()])
        attention_ends[batch] = before if modules.o_proj is None else before + seen[modules.o_proj][1]
    return attention_ends


def _check_residual(hidden: Tensor, output: Tensor, parts: list[Tensor]) -> None:
    """The refit's targets assume output = input + attention + FFN; a family that adds otherwise is refused."""
    if not _adds(hidden, output, parts):
        raise ModelError(
            "reconstruction: expected a layer's output to be its input plus attention plus FFN, got another residual form; "
            "set pruning.reconstruction.form to local for this family"
        )


def _adds(hidden: Tensor, output: Tensor, parts: list[Tensor]) -> bool:
    expected = hidden + sum(parts)
    return torch.allclose(expected.float(), output.float(), rtol=1e-2, atol=1e-2 * float(output.float().abs().mean()))


@torch.no_grad()
def has_plain_residual(model: nn.Module, structure: ModelStructure, input_ids: Tensor) -> bool:
    """Whether a layer adds attention and FFN to its input as they come (not through a norm, nor scaled), by trying the first one."""
    if structure.left_whole:  # what the projection that is not looked at adds to the stream is not known
        return False
    with evaluation_mode(model):
        windows = start(model, input_ids[:1], 1)
        output, seen = run_dense(next(layer_modules(model, structure)), windows, windows.starts[0])
        return _adds(windows.starts[0], output, [part for _, part in seen.values()])


class _Stop(Exception):
    pass


@contextmanager
def stopping_before(module: nn.Module, box: list[Tensor]) -> Iterator[None]:
    """Puts the module's input into the box and ends the block there."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        box.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()
