"""Finds a model's units by tracing one of its layers with torch-pruning's dependency graph.

The trace runs on a one-layer copy of the model on the meta device (no memory, no weights, eager attention) and its
index maps are transferred to every layer. Each map is checked before it is believed, and the shapes of every real
layer are checked against it: a structure that is returned is one that surgery can cut by.

Layers of a model that was pruned before may be narrower than the configuration says. Surgery keeps rows and columns in their order,
so a layer with k units left looks as if the first k had been kept: the traced map is narrowed to these.
"""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapruner.errors import ConfigurationError, ModelError
from adapruner.models.families import Family, family_of
from adapruner.models.families.wide_experts import LinearRouter
from adapruner.models.outputs import find_outputs, unprunable_kinds
from adapruner.models.shapes import clear_layer_widths, layer_shape, stock_class
from adapruner.models.units import KINDS, Kind, Member, ModelStructure, UnitGroup, count_parameters

AttentionUnits = Literal["kv_group", "query_head"]
FfnUnits = Literal["channel", "expert"]

#: Weights over one head's dimensions, the same for all heads: a head goes without touching them (Qwen3, Gemma 3).
_PER_HEAD_NORMS = ("q_norm.weight", "k_norm.weight")
_TRACE_SECONDS = 60
_TO_DO = "write a file for its family (docs/add-a-family.md)"


def trace_structure(model: Any, attention_units: AttentionUnits = "kv_group", ffn_units: FfnUnits = "channel") -> ModelStructure:
    """The prunable units of a Hugging Face causal LM: dense, or pruned before, whatever the widths of its layers are now.

    A model of unusual modules (GPT-2's ``Conv1D``) is first put into its linear form, in place: it computes the same.

    Args:
        model: the causal LM.
        attention_units: ``kv_group``: a KV head with all its query heads goes as one. ``query_head``: single query heads go,
            equally many of each KV head; KV heads stay.
        ffn_units: ``channel``: single channels go, in a mixture of experts equally many of each. ``expert``: whole experts go,
            with their rows of the router.

    Raises:
        ConfigurationError: if ``attention_units`` or ``ffn_units`` is none of these, or the model has no experts for them.
        ModelError: if the decoder layers or their output projections are not found, if the model does not trace, if
            the traced index maps are not sound, if a layer is none that surgery leaves of the traced one, or if nothing of
            the family can be removed exactly.
    """
    if attention_units not in ("kv_group", "query_head"):
        raise ConfigurationError(f"attention_units: expected 'kv_group' or 'query_head', got {attention_units!r}; name one of them")
    if ffn_units not in ("channel", "expert"):
        raise ConfigurationError(f"ffn_units: expected 'channel' or 'expert', got {ffn_units!r}; name one of them")
    family = family_of(str(model.config.model_type))
    family.linear_form(model)
    path, layers = find_decoder_layers(model)
    one_layer = _one_layer_copy(model)
    family.linear_form(one_layer)
    _, traced_layers = find_decoder_layers(one_layer)
    roots = find_outputs(traced_layers[0], family)
    whole = unprunable_kinds(one_layer, family)
    if roots.keys() <= whole.keys():
        raise ModelError(f"model: expected something to remove in {type(model).__name__}, got none: {'; '.join(whole.values())}")
    maps = {kind: _map_group(one_layer, root, kind, family, path) for kind, root in roots.items() if kind not in whole}
    groups = []
    for layer in range(len(layers)):
        for kind in KINDS:
            if kind in maps:
                group = _transfer(model, maps[kind], one_layer, path, layer)
                single = kind == "attention" and attention_units == "query_head"
                groups.append(single_query_heads(group, model) if single else group)
        if ffn_units == "expert":
            groups[-1:] = [whole_experts(groups[-1] if "ffn" in maps else None, model, f"{path}.{layer}.")]
    return ModelStructure(
        groups=tuple(groups),
        model_type=str(model.config.model_type),
        layers=len(layers),
        parameters=count_parameters(model),
        block_parameters=sum(g.units * g.parameters_per_unit for g in groups),
        left_whole=tuple((kind, reason) for kind, reason in whole.items() if kind in roots),
        configured=layer_shape(maps, {kind: list(range(group.units)) for kind, group in maps.items()}),
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
    clear_layer_widths(config)
    kinds = getattr(config, "layer_types", None)
    try:
        if kinds:
            config.layer_types = kinds[:1]
        config.num_hidden_layers = 1
        with torch.device("meta"):
            one_layer: nn.Module = stock_class(type(model))._from_config(config, attn_implementation="eager")
    except Exception as error:  # a state-space model's configuration, say, whose kinds of layers cannot be set
        got = f"layers of {', '.join(sorted(set(map(str, kinds))))}" if kinds else f"{str(error).strip()[:120]!r}"
        raise ModelError(
            f"model: expected a decoder whose layers have attention and an FFN, got {type(model).__name__} with {got}; {_TO_DO}"
        ) from error
    return one_layer.float()


def _map_group(one_layer: nn.Module, root: tuple[str, Any], kind: Kind, family: Family, path: str) -> UnitGroup:
    """The group of the copy's only layer: from the family's own map where there is one, else traced."""
    name, module = root
    if kind in family.maps:
        parts = family.maps[kind](one_layer.config)
        members = [Member(role, f"{path}.0.{part.module}", 0, torch.tensor(part.rows)) for role, part in parts.items()]
        members.append(Member(name.rsplit(".", 1)[-1], f"{path}.0.{name}", 1, torch.arange(module.in_features)))
    else:
        members = _trace_members(one_layer, module, kind)
    return _checked_group(one_layer, kind, members, module.in_features, _sets(one_layer, members[-1].module))


def _trace_members(one_layer: nn.Module, root: Any, kind: Kind) -> list[Member]:
    """Every linear layer that depends on the root's input channels, the root last; module names are the copy's."""
    import torch_pruning as tp

    graph = _dependency_graph(one_layer)
    names = {module: name for name, module in one_layer.named_modules()}
    with _time_limit(_TRACE_SECONDS, type(one_layer).__name__):
        traced = graph.get_pruning_group(root, tp.prune_linear_in_channels, idxs=list(range(root.in_features)))
    members = []
    for dependency, indices in traced:
        module = dependency.target.module
        if not isinstance(module, nn.Linear):
            if any(True for _ in module.parameters(recurse=False)):
                raise ModelError(
                    f"model: expected only linear layers to depend on {kind} units, got {type(module).__name__} "
                    f"({names.get(module)}); {_TO_DO}"
                )
            continue
        dim: Literal[0, 1] = 0 if dependency.handler == tp.prune_linear_out_channels else 1
        name = names[module]
        members.append(Member(name.rsplit(".", 1)[-1], name, dim, torch.tensor(indices, dtype=torch.long)))
    return sorted(members, key=lambda m: (m.dim, _position(root, m), m.module))


def _checked_group(one_layer: nn.Module, kind: Kind, members: list[Member], channels: int, sets: int) -> UnitGroup:
    units = channels if kind == "ffn" else _key_value_heads(one_layer.config)
    head_dim = channels // int(one_layer.config.num_attention_heads) if kind == "attention" else 0  # type: ignore[union-attr,arg-type]
    key_value_heads = units if kind == "attention" else 0
    group = UnitGroup(0, kind, units, channels // units, tuple(members), 0, sets, head_dim, key_value_heads)
    _check_maps(group, one_layer)
    return group


def single_query_heads(group: UnitGroup, model: nn.Module) -> UnitGroup:
    """The same attention with single query heads as units: keys and values stay, so only q and the output are coupled."""
    if group.channels_per_unit == group.head_dim:  # one query head for each KV head: it is its own group
        return group
    shared = tuple(m for m in group.members if m.role in ("k_proj", "v_proj"))
    kept = tuple(m for m in group.members if m not in shared)
    heads = group.channels // group.head_dim
    single = replace(group, units=heads, channels_per_unit=group.head_dim, members=kept, sets=group.key_value_heads, staying=shared)
    return _counted(model, single)


def whole_experts(group: UnitGroup | None, model: nn.Module, layer: str) -> UnitGroup:
    """The same mixture with whole experts as units; a token's choice has to stay possible.

    Args:
        layer: what the names of the layer's modules begin with.

    Raises:
        ConfigurationError: if there is no mixture.
    """
    routers = [(name, m) for name, m in model.named_modules() if name.startswith(layer) and isinstance(m, LinearRouter)]
    if group is None or len(routers) != 1:
        raise ConfigurationError(
            f"ffn_units: expected 'channel' for {type(model).__name__}, got 'expert'; it has no experts, name 'channel'"
        )
    name, chooser = routers[0]
    length = group.units // group.sets
    router = Member("router", f"{name}.router", 0, torch.arange(group.channels) // length)
    members = (*group.members[:-1], router, group.output)
    whole = replace(group, units=group.sets, channels_per_unit=length, members=members, sets=1, at_least=chooser.top_k)
    _check_maps(whole, model)
    return _counted(model, whole)


def _position(root: nn.Module, member: Member) -> int:
    """q, k, v and gate, up in their usual order: the first is what reduction ``first`` means."""
    order = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    return order.index(member.role) if member.role in order else len(order)


def _key_value_heads(config: Any) -> int:
    """Falcon counts its KV heads under another name, and in one of its forms has one for all."""
    if getattr(config, "new_decoder_architecture", None) is False:
        return 1 if config.multi_query else int(config.num_attention_heads)
    found = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return int(found or config.num_attention_heads)


def _dependency_graph(one_layer: nn.Module) -> Any:
    import torch_pruning as tp

    def forward(model: nn.Module, ids: Tensor) -> Tensor:
        return model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    ignored = [p for name, p in one_layer.named_parameters() if name.endswith(_PER_HEAD_NORMS)]
    ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
    graph = tp.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(one_layer, example_inputs=ids, forward_fn=forward, ignored_params=ignored, verbose=False)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model: expected {type(one_layer).__name__} to trace, got {reason!r}; {_TO_DO}") from error
    # rotary embeddings concatenate two halves of one head; read as a concatenation of channels, the group never closes
    for node in graph.module2node.values():
        if node.type == tp.ops.OPTYPE.CONCAT:
            node.enable_index_mapping = False
            neighbours = set(node.inputs + node.outputs)
            towards = [d for n in neighbours for d in n.dependencies if d.target is node]
            for dependency in [*node.dependencies, *towards]:
                dependency.index_mapping = [None, None]
    return graph


def _check_maps(group: UnitGroup, model: nn.Module) -> None:
    """Every channel mapped, the root by identity, every row covered, and no row shared by two units or two fused parts."""
    modules: dict[str, Any] = {name: model.get_submodule(name) for name, _ in group.tensors}
    unit_of_channel = torch.arange(group.channels) // group.channels_per_unit
    sound = group.units * group.channels_per_unit == group.channels and len(group.members) > 1
    sound &= torch.equal(group.output.index, torch.arange(group.channels))
    sound &= all(len(m.index) == group.channels for m in group.members)
    for name, dim in group.tensors if sound else ():
        size = modules[name].weight.shape[dim]
        owner = torch.full((size,), -1)
        for member in (m for m in group.members if m.module == name):
            inside = bool(((member.index >= 0) & (member.index < size)).all())
            if not inside or bool((owner[member.index] >= 0).any()):
                sound = False
                break
            owner[member.index] = unit_of_channel
            sound &= torch.equal(owner[member.index], unit_of_channel)
        sound &= bool((owner >= 0).all())
    if not sound:
        raise ModelError(
            f"model: expected every {group.kind} unit of {type(model).__name__} to own rows of its own in each coupled tensor, "
            f"got an index map that mixes them; {_TO_DO}"
        )


def _counted(model: nn.Module, group: UnitGroup) -> UnitGroup:
    """The group with the parameters that one of its units has in the model, biases included."""
    channels, parameters = group.channels_of([0]), 0
    for member in group.members:
        module: Any = model.get_submodule(member.module)
        across = module.weight.shape[1 - member.dim] + (1 if member.dim == 0 and module.bias is not None else 0)
        parameters += len(member.positions(channels)) * across
    return replace(group, parameters_per_unit=parameters)


def _transfer(model: nn.Module, traced: UnitGroup, one_layer: nn.Module, path: str, layer: int) -> UnitGroup:
    """The same group in a real layer, at the widths that it has there, after a check of every coupled tensor."""
    members = tuple(replace(m, module=m.module.replace(f"{path}.0.", f"{path}.{layer}.", 1)) for m in traced.members)
    group = replace(traced, layer=layer, members=members)
    shapes = {now.module: one_layer.get_submodule(m.module) for now, m in zip(members, traced.members, strict=True)}
    misfits = {candidate: _misfit(model, candidate, shapes) for candidate in _narrowings(model, group)}
    fitting = next((candidate for candidate, misfit in misfits.items() if not misfit), None)
    if fitting is None:
        raise ModelError(
            f"model: expected {next(iter(misfits.values()))}; give the dense model, or one whose layers keep whole heads and channels of it"
        )
    output: Any = model.get_submodule(fitting.output.module)
    traced_output: Any = shapes[fitting.output.module]
    holder: Any = model.get_submodule(fitting.output.module.rpartition(".")[0])
    numbers = tuple(getattr(holder, "alibi_heads", None) or ()) if traced.kind == "attention" else ()
    fitting = replace(fitting, head_numbers=numbers, added_bias=output.bias is not None and traced_output.bias is None)
    return _counted(model, fitting)


def _narrowings(model: nn.Module, group: UnitGroup) -> Iterator[UnitGroup]:
    """The group itself, and what it is with as many channels as the layer has, in every way that they may be shared out.

    Over fewer KV heads, each with fewer query heads; over fewer experts, each with fewer channels.
    """
    output: Any = model.get_submodule(group.output.module)
    channels = output.weight.shape[1] if isinstance(output, nn.Linear) else 0
    yield group
    runs, length = (group.units, group.channels_per_unit) if group.kind == "attention" else (group.sets, group.channels // group.sets)
    grain = max(1, group.head_dim)
    for kept in range(1, runs + 1):
        width = channels // kept
        if channels == group.channels or width * kept != channels or width > length or width % grain or not width:
            continue
        if group.kind == "ffn" and kept != _sets(model, group.output.module):
            continue
        inside = (torch.arange(kept)[:, None] * length + torch.arange(width)).flatten()
        yield group.narrowed(inside, *((kept, 1) if group.kind == "attention" else (channels, kept)))


def _sets(model: nn.Module, output: str) -> int:
    """Experts whose channels an output projection takes; 1 where there is no mixture."""
    return int(getattr(model.get_submodule(output.rpartition(".")[0]), "sets", 1))


def _misfit(model: nn.Module, group: UnitGroup, built: dict[str, Any]) -> str:
    """What does not fit of a group's tensors, in words; empty if all do.

    Args:
        built: module of the group -> the traced one, of the configuration's widths.
    """
    for name, dim in group.tensors:
        expected = list(built[name].weight.shape)
        expected[dim] = group.size(name)
        module: Any = model.get_submodule(name)
        shape = tuple(module.weight.shape) if isinstance(module, nn.Linear) else None
        if shape != tuple(expected):
            return f"{name} to be a linear layer of shape {tuple(expected)} as its layer's output projection wants, got {shape}"
        if dim == 0 and (module.bias is None) != (built[name].bias is None):
            return f"{name} to have a bias exactly if layer 0 has one, got another"
    return ""


@contextmanager
def _time_limit(seconds: int, name: str) -> Iterator[None]:
    """A graph that never closes must not hang the run. Signals reach the main thread only; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise ModelError(f"model: expected {name} to trace within {seconds} s, got no end; {_TO_DO}")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
