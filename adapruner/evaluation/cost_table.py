"""The rows of the cost table, each declared once: the numbers of a report's cost section, how they are measured and what they are called.

The schema, the table on the terminal and that on the page follow from here. A user's own row is a function under the same decorator:

>>> @register_cost_row("layers", "decoder layers", "count", needs_device=False)
... def count_layers(run):
...     return run.model.config.num_hidden_layers
>>> COST_ROWS.find("layers").title
'decoder layers'
>>> COST_ROWS.remove("layers")

What is measured is imported inside functions: a report is read, and its table printed, without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapruner.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from adapruner.evaluation.timing import Latency


@dataclass(frozen=True)
class MeasuredModel:
    """One model, and what its forward is measured on."""

    model: nn.Module
    seq_len: int
    """Tokens per sequence."""
    batch: int = 1
    """Sequences."""
    latency: Latency | None = None
    """Timed in turns with the models that it is compared with; ``None`` where the device cannot run it."""


Measure = Callable[[MeasuredModel], "float | None"]
Costs = dict[str, "float | None"]
"""Name of a row -> number."""


@dataclass(frozen=True)
class CostRow:
    """One number that a model costs."""

    name: str
    """Its key in ``report.json``, under ``cost.dense`` and ``cost.pruned``."""
    title: str
    """Its name in the table; empty: it is in the file alone."""
    unit: str
    """``count``, ``GiB``, or what else stands behind the number: ``ms``."""
    measure: Measure
    """``None`` where the device does not tell."""
    needs_device: bool
    """Whether the model has to run on its own device: ``None`` then where the device's memory does not suffice for it."""


COST_ROWS: Registry[CostRow] = Registry("row of the cost table", group="adapruner.cost_rows")
"""In the order of the table."""


def register_cost_row(name: str, title: str, unit: str, needs_device: bool = True) -> Callable[[Measure], Measure]:
    """Makes a function known as what measures a row; arguments as the fields of :class:`CostRow`.

    Raises:
        ConfigurationError: if the name is taken.
    """

    def register(measure: Measure) -> Measure:
        COST_ROWS.add(name, CostRow(name, title, unit, measure, needs_device))
        return measure

    return register


def measure_costs(models: dict[str, nn.Module], seq_len: int = 128, batch: int = 1, repeats: int = 20) -> dict[str, Costs]:
    """The costs of several models by their names; latencies are taken side by side, those of two calls do not compare.

    Arguments as for :func:`adapruner.evaluation.cost.measure_latency`.

    Raises:
        ConfigurationError: as :func:`adapruner.evaluation.cost.measure_latency`.
        ModelError: as :func:`adapruner.evaluation.cost.count_macs`.
    """
    from adapruner.evaluation.cost import measure_latency

    latencies = measure_latency(models, seq_len, batch, repeats)
    runs = {name: MeasuredModel(model, seq_len, batch, latencies[name]) for name, model in models.items()}
    return {name: {row: COST_ROWS.find(row).measure(run) for row in COST_ROWS} for name, run in runs.items()}


def measure_sizes_alone(model: nn.Module, seq_len: int) -> Costs:
    """The rows that need no device, of a model wherever it is."""
    run = MeasuredModel(model, seq_len)
    return {name: COST_ROWS.find(name).measure(run) for name in COST_ROWS if not COST_ROWS.find(name).needs_device}


@register_cost_row("parameters", "parameters", "count", needs_device=False)
def _parameters(run: MeasuredModel) -> float:
    """Distinct parameters, tied tensors once."""
    from adapruner.models.units import count_parameters

    return count_parameters(run.model)


@register_cost_row("macs", "MACs", "count", needs_device=False)
def _macs(run: MeasuredModel) -> float:
    """Multiply-accumulates of one forward over ``[batch, seq_len]`` tokens."""
    from adapruner.evaluation.cost import count_macs

    return count_macs(run.model, run.seq_len, run.batch)


@register_cost_row("latency_ms", "latency", "ms")
def _latency(run: MeasuredModel) -> float | None:
    """Median time of one forward over ``[batch, seq_len]`` tokens."""
    return None if run.latency is None else run.latency.prefill_ms


@register_cost_row("latency_iqr_ms", "", "ms")
def _latency_range(run: MeasuredModel) -> float | None:
    """Interquartile range of that time."""
    return None if run.latency is None else run.latency.prefill_iqr_ms


@register_cost_row("decode_ms", "per decoded token", "ms")
def _decoding(run: MeasuredModel) -> float | None:
    """Median time of one more token with the key-value cache, batch 1."""
    return None if run.latency is None else run.latency.decode_ms


@register_cost_row("weight_memory_gib", "weight memory", "GiB", needs_device=False)
def _weight_memory(run: MeasuredModel) -> float:
    """The weights as they are stored."""
    from adapruner.evaluation.cost import weight_memory_gib

    return weight_memory_gib(run.model)


@register_cost_row("peak_memory_gib", "peak memory", "GiB")
def _peak_memory(run: MeasuredModel) -> float | None:
    """Weights, and what a forward needs beside them."""
    from adapruner.evaluation.cost import peak_memory_gib

    return peak_memory_gib(run.model, run.seq_len, run.batch)


@register_cost_row("prefill_energy_j", "energy", "J")
def _energy(run: MeasuredModel) -> float | None:
    """Joules of one forward on the whole card."""
    from adapruner.evaluation.cost import prefill_energy_j

    return prefill_energy_j(run.model, run.seq_len, run.batch)
