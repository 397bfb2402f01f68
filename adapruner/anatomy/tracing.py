"""Finds a model's units by tracing one of its layers with torch-pruning's dependency graph.

The trace runs on a one-layer copy of the model on the meta device (no memory, no weights, eager attention) and its
index maps are transferred to every layer. Each map is checked before it is believed, and the shapes of every real
layer are checked against the copy: an anatomy that is returned is one that surgery can cut by.
"""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapruner.anatomy.units import Kind, Member, ModelAnatomy, UnitGroup, count_parameters
from adapruner.errors import ModelError

#: Where the groups are rooted: the last module of the attention and of the FFN, found by its name inside a layer.
OUTPUT_PROJECTIONS: dict[str, Kind] = {"o_proj": "attention", "down_proj": "ffn"}

#: Weights over one head's dimensions, the same for all heads: a head goes without touching them (Qwen3, Gemma 3).
_PER_HEAD_NORMS = ("q_norm.weight", "k_norm.weight")
_TRACE_SECONDS = 60


def trace_anatomy(model: Any) -> ModelAnatomy:
    """The prunable units of a dense Hugging Face causal LM.

    Raises:
        ModelError: if the decoder layers or their output projections are not found, if the model does not trace, if
            the traced index maps are not sound, or if a layer is built differently from the traced one.
    """
    path, layers = find_decoder_layers(model)
    copy_of_one = _one_layer_copy(model)
    _, traced_layers = find_decoder_layers(copy_of_one)
    maps = {kind: _trace_group(copy_of_one, root, kind, path) for kind, root in _find_outputs(traced_layers[0])}
    groups = [
        _transfer(model, maps[kind], copy_of_one, path, layer)
        for layer in range(len(layers))
        for kind in ("attention", "ffn")
        if kind in maps
    ]
    return ModelAnatomy(
        groups=tuple(groups),
        model_type=str(model.config.model_type),
        layers=len(layers),
        parameters=count_parameters(model),
        block_parameters=sum(g.units * g.parameters_per_unit for g in groups),
    )


def find_decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """Dotted name and list of the decoder layers: the module list as long as the configuration says.

    Raises:
        ModelError: if there is no such list, or more than one.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    found = [(n, m) for n, m in found if not any(n.startswith(f"{other}.") for other, _ in found)]
    if len(found) != 1:
        raise ModelError(
            f"model: expected one list of {depth} decoder layers in {type(model).__name__}, got {len(found)}; "
            "give a decoder-only causal language model"
        )
    return found[0]


def _one_layer_copy(model: Any) -> nn.Module:
    config = copy.deepcopy(model.config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    config.num_hidden_layers = 1
    with torch.device("meta"):
        twin: nn.Module = type(model)._from_config(config, attn_implementation="eager")  # type: ignore[attr-defined]
    return twin.float()


def _find_outputs(layer: nn.Module) -> list[tuple[Kind, nn.Module]]:
    found: list[tuple[Kind, nn.Module]] = []
    for name, module in layer.named_modules():
        kind = OUTPUT_PROJECTIONS.get(name.rsplit(".", 1)[-1])
        if kind and isinstance(module, nn.Linear):
            found.append((kind, module))
    kinds = [kind for kind, _ in found]
    if not kinds or len(set(kinds)) != len(kinds):
        raise ModelError(
            f"model: expected in every decoder layer one linear layer of each name in {', '.join(OUTPUT_PROJECTIONS)}, "
            f"got {len(kinds)} of them in {type(layer).__name__}; this family is not supported yet"
        )
    return found


def _trace_group(twin: nn.Module, root: Any, kind: Kind, path: str) -> UnitGroup:
    """The group of the copy's only layer, with module names of layer 0."""
    import torch_pruning as tp

    graph = _dependency_graph(twin)
    names = {module: name for name, module in twin.named_modules()}
    channels = range(root.in_features)
    with _time_limit(_TRACE_SECONDS, type(twin).__name__):
        traced = graph.get_pruning_group(root, tp.prune_linear_in_channels, idxs=list(channels))
    members = []
    for dependency, indices in traced:
        module = dependency.target.module
        if not isinstance(module, nn.Linear):
            if any(True for _ in module.parameters(recurse=False)):
                raise ModelError(
                    f"model: expected only linear layers to depend on {kind} units, got {type(module).__name__} "
                    f"({names.get(module)}); this family is not supported yet"
                )
            continue
        dim: Literal[0, 1] = 0 if dependency.handler == tp.prune_linear_out_channels else 1
        name = names[module]
        members.append(Member(name.rsplit(".", 1)[-1], name, dim, torch.tensor(indices, dtype=torch.long)))
    units = _number_of_units(twin.config, kind, len(channels))
    members.sort(key=lambda m: (m.dim, _position(root, m), m.module))
    group = UnitGroup(0, kind, units, len(channels) // units, tuple(members), parameters_per_unit=0)
    _check_maps(group, twin)
    per_unit = sum(_parameters_of_unit(twin, m, group) for m in members)
    return UnitGroup(0, kind, units, group.channels_per_unit, group.members, per_unit)


def _position(root: nn.Module, member: Member) -> int:
    """q, k, v and gate, up in their usual order: the first is what reduction ``first`` means."""
    order = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    return order.index(member.role) if member.role in order else len(order)


def _dependency_graph(twin: nn.Module) -> Any:
    import torch_pruning as tp

    def forward(model: nn.Module, ids: Tensor) -> Tensor:
        return model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    ignored = [p for name, p in twin.named_parameters() if name.endswith(_PER_HEAD_NORMS)]
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    graph = tp.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(twin, example_inputs=ids, forward_fn=forward, ignored_params=ignored, verbose=False)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model: expected {type(twin).__name__} to trace, got {reason!r}; this family is not supported yet") from error
    # rotary embeddings concatenate two halves of one head; read as a concatenation of channels, the group never closes
    for node in graph.module2node.values():
        if node.type == tp.ops.OPTYPE.CONCAT:
            node.enable_index_mapping = False
            neighbours = set(node.inputs + node.outputs)
            towards = [d for n in neighbours for d in n.dependencies if d.target is node]
            for dependency in [*node.dependencies, *towards]:
                dependency.index_mapping = [None, None]
    return graph


def _number_of_units(config: Any, kind: Kind, channels: int) -> int:
    if kind == "ffn":
        return channels
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _check_maps(group: UnitGroup, twin: nn.Module) -> None:
    """Every channel mapped, the root by identity, every row covered, and no row shared by two units."""
    modules = dict(twin.named_modules())
    unit_of_channel = torch.arange(group.channels) // group.channels_per_unit
    sound = group.units * group.channels_per_unit == group.channels
    sound &= len({m.module for m in group.members}) == len(group.members) > 1
    sound &= torch.equal(group.output.index, torch.arange(group.channels))
    for member in group.members:
        size = modules[member.module].weight.shape[member.dim]
        if not sound or len(member.index) != group.channels:
            sound = False
            break
        owner = torch.full((size,), -1)
        inside = (member.index >= 0) & (member.index < size)
        sound &= bool(inside.all())
        if sound:
            owner[member.index] = unit_of_channel
            sound &= bool((owner >= 0).all()) and torch.equal(owner[member.index], unit_of_channel)
    if not sound:
        raise ModelError(
            f"model: expected every {group.kind} unit of {type(twin).__name__} to own rows of its own in each coupled tensor, "
            "got an index map that mixes them; this family needs an index map of its own"
        )


def _parameters_of_unit(twin: nn.Module, member: Member, group: UnitGroup) -> int:
    module = dict(twin.named_modules())[member.module]
    positions = len(member.positions(group.channels_of([0])))
    across = module.weight.shape[1 - member.dim]
    return positions * (across + (1 if member.dim == 0 and module.bias is not None else 0))


def _transfer(model: nn.Module, traced: UnitGroup, twin: nn.Module, path: str, layer: int) -> UnitGroup:
    """The same group in a real layer, after a check that its tensors have the traced shapes."""
    modules, twins = dict(model.named_modules()), dict(twin.named_modules())
    members = []
    for member in traced.members:
        name = member.module.replace(f"{path}.0.", f"{path}.{layer}.", 1)
        module, expected = modules.get(name), twins[member.module].weight.shape
        shape = tuple(module.weight.shape) if isinstance(module, nn.Linear) else None
        if shape != tuple(expected):
            raise ModelError(
                f"model: expected {name} to be a linear layer of shape {tuple(expected)} as in layer 0, got {shape}; "
                "give the dense model, or one whose layers are alike"
            )
        if (module.bias is None) != (twins[member.module].bias is None):  # type: ignore[union-attr]
            raise ModelError(
                f"model: expected {name} to have a bias exactly if layer 0 has one, got another; give one whose layers are alike"
            )
        members.append(Member(member.role, name, member.dim, member.index))
    return UnitGroup(layer, traced.kind, traced.units, traced.channels_per_unit, tuple(members), traced.parameters_per_unit)


@contextmanager
def _time_limit(seconds: int, name: str) -> Iterator[None]:
    """A graph that never closes must not hang the run. Signals reach the main thread only; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise ModelError(f"model: expected {name} to trace within {seconds} s, got no end; this family needs an index map of its own")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
