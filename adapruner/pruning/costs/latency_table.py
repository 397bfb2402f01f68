"""Milliseconds per unit: measured on the device, used by latency budgets, corrected where the device says otherwise.

The latency of a pruned model is modelled by a straight line: a dense model's time less so many milliseconds for each removed unit. To
measure it, the attention and the FFN of one decoder layer are copied, really cut to several widths and timed by themselves, on the
inputs they get inside the model; a line through the medians gives ms per unit. Layers are alike, so one stands for all. A real
device has steps and plateaus that a line does not have, so a plan is timed once and the line turned (:func:`correct`) until both agree.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from adapruner.errors import ConfigurationError, ModelError
from adapruner.models.families import family_of
from adapruner.models.families.modeling_adapruner import set_attributes
from adapruner.models.forward import evaluation_mode, hooked, random_ids
from adapruner.models.shapes import layer_shape
from adapruner.models.units import ModelStructure, UnitGroup

#: One correction changes the cost of a unit by at most this factor: a noisy measurement must not throw the next plan far off.
LARGEST_CORRECTION = 4.0
#: Shortest time that one sample of a statement takes, in seconds: short blocks run many times.
_SAMPLE_SECONDS = 0.01
#: Where a width makes no difference that could be measured: all units together cost this part of the forward.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per unit on one device."""

    per_unit_ms: Mapping[str, float]
    """``attention`` and ``ffn`` -> ms that one unit of one layer takes of a forward, above 0."""
    whole_ms: float
    """Median time of one forward of the whole dense model over ``[batch_size, seq_len]`` tokens."""
    seq_len: int
    batch_size: int
    device: str
    """In words, with threads or name and the type of the weights."""

    def __post_init__(self) -> None:
        numbers = {"whole_ms": self.whole_ms, **{f"per_unit_ms.{kind}": value for kind, value in self.per_unit_ms.items()}}
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise ConfigurationError(f"latency.{name}: expected a positive number of ms, got {value}; measure the table again")

    def predict(self, kept: Mapping[str, list[int]], structure: ModelStructure) -> float:
        """Milliseconds of one forward of the model that keeps these units, by the line."""
        return self.whole_ms - sum((g.units - len(kept[g.name])) * self.per_unit_ms[g.kind] for g in structure.groups)


def correct(table: LatencyTable, predicted: float, measured: float) -> LatencyTable:
    """The table whose line goes through a real measurement; the time of the dense model stays.

    Args:
        predicted: ms that ``table`` gives for a plan.
        measured: ms of the really pruned model, at the table's sizes. Machines drift: take it beside the dense model, in turns
            (``evaluation.cost.measure_latency``), and give ``table.whole_ms * pruned / dense``.

    A plan made again with the corrected table is nearer to the target; one to three rounds bring it within a few percent.
    One round changes costs by a factor of four at most.

    Raises:
        ConfigurationError: if a time is not positive, or the plan was predicted to save nothing.
    """
    for name, value in (("predicted", predicted), ("measured", measured)):
        if not 0 < value < math.inf:
            raise ConfigurationError(f"{name}: expected a positive number of ms, got {value}; measure again")
    saved = table.whole_ms - predicted
    if saved <= 0:
        raise ConfigurationError(
            f"predicted: expected less than the dense model's {table.whole_ms:.6g} ms, got {predicted:.6g}; correct with a plan that prunes"
        )
    factor = min(max((table.whole_ms - measured) / saved, 1.0 / LARGEST_CORRECTION), LARGEST_CORRECTION)
    return replace(table, per_unit_ms={kind: value * factor for kind, value in table.per_unit_ms.items()})


def measure_latency_table(
    model: nn.Module,
    structure: ModelStructure,
    *,
    seq_len: int = 128,
    batch_size: int = 1,
    fractions: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    repeats: int = 9,
    threads: int | None = None,
) -> LatencyTable:
    """Times the dense model and its first layer's blocks at several widths, in turns, with ``torch.utils.benchmark``.

    Args:
        model: dense, on the device and in the type that it will run in. It is not changed.
        seq_len: tokens of each sequence of a forward.
        batch_size: sequences of a forward.
        fractions: of a group's units that stay, in (0, 1]; at least two that differ.
        repeats: samples of each; the median counts.
        threads: CPU threads while measuring; None takes torch's present number.

    Raises:
        ConfigurationError: if the model has fewer positions.
        ModelError: if a block does not own all its coupled layers, or the model never calls it.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and seq_len > positions:
        raise ConfigurationError(f"seq_len: expected from 1 to the model's {positions} positions, got {seq_len}; give a length in between")
    threads = torch.get_num_threads() if threads is None else threads
    first = {g.kind: g for g in reversed(structure.groups)}
    with evaluation_mode(model):
        ids = random_ids(model, batch_size, seq_len)
        blocks = {kind: _block_of(model, group) for kind, group in first.items()}
        inputs = _capture_inputs(model, blocks, ids)
        calls: dict[tuple[str, int], Callable[[], Any]] = {("whole", 0): lambda: model(input_ids=ids, use_cache=False)}
        for kind, group in first.items():
            for units in sorted({max(1, round(group.units * f)) for f in fractions}):
                calls[kind, units] = _call(_cut_copy(model, blocks[kind], group, units), *inputs[kind])
        times = _median_ms(calls, repeats, threads)
    whole = times.pop(("whole", 0))
    least = _LEAST_SHARE * whole / sum(g.units for g in structure.groups)
    per_unit: dict[str, float] = {}
    for kind in first:
        points = [(units, ms) for (k, units), ms in times.items() if k == kind]
        per_unit[kind] = max(fit_line(points)[0], least)
    together = sum(g.units * per_unit[g.kind] for g in structure.groups)
    if together > whole:  # noise, or caches that a block alone does not have: units cannot take more than everything
        per_unit = {kind: ms * whole / together for kind, ms in per_unit.items()}
    return LatencyTable(per_unit, whole, seq_len, batch_size, _describe(model, ids.device, threads))


def fit_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and constant of the least-squares line through ``(x, y)``, neither below 0.

    >>> fit_line([(1, 3.0), (2, 5.0), (3, 7.0)])
    (2.0, 1.0)
    """
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    if slope <= 0:
        return 0.0, max(mean_y, 0.0)
    if mean_y - slope * mean_x < 0:  # the best line of those through the origin
        return sum(x * y for x, y in points) / sum(x * x for x, _ in points), 0.0
    return slope, mean_y - slope * mean_x


def _block_of(model: nn.Module, group: UnitGroup) -> str:
    """Dotted name of the module that holds all coupled layers of a group: ``model.layers.0.mlp``."""
    block = group.output.module.rpartition(".")[0]
    outside = [m.module for m in group.members if not m.module.startswith(f"{block}.")]
    if outside or not block:
        raise ModelError(
            f"model: expected one module to hold all coupled layers of {group.name}, got {(outside or ['none'])[0]} outside {block!r}; "
            "give a budget of macs instead of latency"
        )
    return block


def _capture_inputs(model: nn.Module, blocks: dict[Any, str], ids: torch.Tensor) -> dict[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each block is called with in a forward of the model."""
    found: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def remember(kind: Any) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            found[kind] = (arguments, keywords)

        return hook

    with hooked(model.get_submodule(name).register_forward_pre_hook(remember(kind), with_kwargs=True) for kind, name in blocks.items()):
        model(input_ids=ids, use_cache=False)
    missing = [name for kind, name in blocks.items() if kind not in found]
    if missing:
        raise ModelError(f"model: expected a forward to call {missing[0]}, got none; give a budget of macs instead of latency")
    return found


def _cut_copy(model: nn.Module, block: str, group: UnitGroup, units: int) -> nn.Module:
    """A copy of the block that has only its first units; what the surgery does, which stands beside this package."""
    copied = copy.deepcopy(model.get_submodule(block))
    kept = group.even_units(units)
    channels = group.channels_of(kept)
    for module, dim in group.tensors:
        linear: Any = copied.get_submodule(module.removeprefix(f"{block}."))
        positions = group.positions(module, channels).to(linear.weight.device)
        linear.weight = nn.Parameter(linear.weight.index_select(dim, positions).contiguous(), requires_grad=False)
        if dim == 0:
            linear.out_features = len(positions)
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[positions], requires_grad=False)
        else:
            linear.in_features = len(positions)
    inside = block.split(f".{group.layer}.", 1)[-1]
    shape = layer_shape({group.kind: group}, {group.kind: kept})
    attributes = family_of(model.config.model_type).attributes(model.config, shape)  # type: ignore[union-attr,arg-type]
    set_attributes(copied, {"": attributes[inside]} if inside in attributes else {})
    return copied


def _call(block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Callable[[], Any]:
    return lambda: block(*arguments, **keywords)


def _median_ms(calls: dict[tuple[str, int], Callable[[], Any]], repeats: int, threads: int) -> dict[tuple[str, int], float]:
    """Median ms of each call. All are sampled in turns, so that a machine that slows down does not bend the line."""
    from torch.utils.benchmark import Timer

    timers = {key: Timer("call()", globals={"call": call}, num_threads=threads) for key, call in calls.items()}
    runs = {}
    for key, timer in timers.items():
        timer.timeit(2)
        runs[key] = min(1000, max(1, round(_SAMPLE_SECONDS / max(timer.timeit(1).median, 1e-9))))
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in timers}
    for _ in range(repeats):
        for key, timer in timers.items():
            samples[key].append(timer.timeit(runs[key]).median * 1000.0)
    return {key: statistics.median(values) for key, values in samples.items()}


def _describe(model: nn.Module, device: torch.device, threads: int) -> str:
    """The device in words."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {dtype}"
    return f"{device.type.upper()} with {threads} {'thread' if threads == 1 else 'threads'}, {dtype}"
