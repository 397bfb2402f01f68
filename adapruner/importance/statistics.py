"""Everything the metrics need to know about the data, collected once per calibration sample.

A trial of the search changes how samples are weighted and how metrics are mixed; neither needs another backward pass,
because every statistic here is kept *per sample* and the metrics are linear (or a modulus of a linear form) in the
sample weights. Only gradients of activations are asked of autograd: no weight gradient of the model is ever stored.

For a linear layer y = W x with loss gradient dL/dy, summed over the tokens t of one sample (docs/method.md, "Per-sample unit
statistics"):

- ``first``: rows, sum_j W_ij G_ij = sum_t (y_ti - b_i) dL/dy_ti; columns, sum_i W_ij G_ij = sum_t x_tj dL/dx_tj.
  The same sums of W * G where a product is wanted anyway; the two differ by rounding.
- ``second``: sum over the row (or column) of (W_ij G_ij)^2, from the sample's own G = sum_t dL/dy_t x_t^T.
- ``first_absolute``: sum over the row (or column) of |W_ij G_ij|, from the same G.
- ``summed_first``, ``summed_mix``: not per sample; see :mod:`adapruner.importance.summed_gradients`.
- ``obs``: not per sample; see :mod:`adapruner.importance.inverse_gram`.
- ``input_sum``, ``input_square_sum``: of the output projection's input channels, over tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adapruner.errors import DataError, ModelError
from adapruner.importance.finiteness import first_not_finite
from adapruner.importance.inverse_gram import REFIT_STATISTICS, InverseGrams
from adapruner.importance.layer_runs import layer_runs
from adapruner.importance.summed_gradients import SUMMED_STATISTICS, SummedGradients
from adapruner.models.forward import batches, evaluation_mode, frozen, hooked
from adapruner.models.next_token_loss import IGNORED, next_token_losses
from adapruner.models.sequences import in_sequences
from adapruner.models.units import ModelStructure, UnitGroup

#: What can be collected. ``second`` and ``first_absolute`` cost one more matrix product per linear layer and sample.
STATISTICS: tuple[str, ...] = ("first", "first_absolute", "second", "input_sum", "input_square_sum", *SUMMED_STATISTICS, *REFIT_STATISTICS)
#: Values of a product that a CPU's cache holds beside what it is made of: 2 MiB.
_CACHED_VALUES = 1 << 19
#: Those that need a backward pass in which every sample's gradient is seen.
_FROM_GRADIENTS = frozenset({"first", "first_absolute", "second"})


class Windows(Protocol):
    """Token windows as :mod:`adapruner.data.windows` makes them; all tensors are ``[n, seq_len]``."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor


@dataclass
class UnitStatistics:
    """Per-sample statistics of all groups, float32 on the CPU."""

    samples: int
    tokens: Tensor
    """``[samples]`` float32: positions that carry activations (not padding)."""
    loss: Tensor
    """``[samples]`` float32: mean NLL of each sample under the dense model, nats per token."""
    member: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """(``first`` | ``first_absolute`` | ``second``, module name) -> ``[samples, rows]``, rows of the member's pruned dimension."""
    inputs: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """(``input_sum`` | ``input_square_sum``, group name) -> ``[samples, channels]``."""
    weights: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """(``l1`` | ``l2`` | ``summed_first`` | ``summed_mix``, module name) -> ``[rows]``: sums over each row or column that no
    sample weight changes; the first two need no data. (``obs``, output projection's name) -> ``[channels]``."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat names for a safetensors file."""
        tables = {"member": self.member, "inputs": self.inputs, "weights": self.weights}
        flat = {f"{t}/{k}/{n}": v.contiguous() for t, table in tables.items() for (k, n), v in table.items()}
        return {"tokens": self.tokens, "loss": self.loss, **flat}

    @classmethod
    def nothing(cls) -> UnitStatistics:
        """Of no sample."""
        return cls(0, torch.zeros(0), torch.zeros(0))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> UnitStatistics:
        """The inverse of :meth:`to_tensors`."""
        result = cls(len(tensors["tokens"]), tensors["tokens"], tensors["loss"])
        for name, value in tensors.items():
            if "/" in name:
                table, key, owner = name.split("/", 2)
                getattr(result, table)[key, owner] = value
        return result


def statistics_per_sample(structure: ModelStructure, needs: frozenset[str]) -> int:
    """How many numbers are kept for each sample."""
    rows = sum(g.size(module) for g in structure.groups for module, _ in g.tensors)
    kinds = len(needs & _FROM_GRADIENTS)
    inputs = 0 if needs.isdisjoint({"input_sum", "input_square_sum"}) else 2 * sum(g.channels for g in structure.groups)
    return kinds * rows + inputs


def collect_statistics(
    model: nn.Module,
    structure: ModelStructure,
    windows: Windows,
    *,
    needs: frozenset[str] = frozenset(STATISTICS),
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> UnitStatistics:
    """One forward pass over the calibration pool, ``batch_size`` samples at a time, and a backward pass where a statistic needs it.

    The loss of a sample is its mean NLL per counted token, as if it were alone in the batch; statistics of a batch
    therefore equal those of its samples taken one at a time.

    Raises:
        DataError: if there is no sample, or one has no token to predict.
        ModelError: if a sample's loss or a statistic is not finite (the message names the sample, or the layer).
    """
    count = len(windows.input_ids)
    if count == 0:
        raise DataError("calibration: expected at least one sample, got none; add text to data.calibration.sources")
    collector = _Collector(structure, count, needs)
    collector.weigh(model)
    obs = "obs" in needs
    inverses = [InverseGrams(structure, layers) for layers in layer_runs(structure, lambda g: g.channels**2)] if obs else []
    hooks = itertools.chain(collector.hook(model), *(inverse.hook(model, collector.token_mask) for inverse in inverses[:1]))
    collector.run(model, windows, batch_size, hooks, backward=not needs.isdisjoint(_FROM_GRADIENTS), progress=progress)
    for turn, inverse in enumerate(inverses):
        if turn > 0:
            collector.run(model, windows, batch_size, inverse.hook(model, collector.token_mask), backward=False)
        inverse.reduce(model)
        collector.result.weights.update(inverse.rows)
    summed = needs.intersection(SUMMED_STATISTICS)
    single_batch = count <= batch_size  # then nothing has to be accumulated
    runs = [range(structure.layers)] if single_batch else layer_runs(structure, lambda g: g.units * g.parameters_per_unit)
    for layers in runs if summed else ():
        gradients = SummedGradients(structure, layers, count, summed, single_batch)
        collector.run(model, windows, batch_size, gradients.hook(model, collector.token_mask), backward=True)
        gradients.reduce(model)
        collector.result.weights.update(gradients.rows)
    collector.check()
    return collector.result


class _NotFinite(Exception):
    """A sample whose loss is inf or nan."""

    def __init__(self, sample: int, loss: float) -> None:
        super().__init__(sample)
        self.sample, self.loss = sample, loss


class _Collector:
    """Holds the hooks' targets while a batch runs through the model."""

    def __init__(self, structure: ModelStructure, samples: int, needs: frozenset[str]) -> None:
        self.structure, self.needs = structure, needs
        self.result = UnitStatistics(samples, torch.zeros(samples), torch.zeros(samples))
        self.rows = slice(0, 0)
        self.mask = torch.empty(0)

    def weigh(self, model: nn.Module) -> None:
        for module, dim in (t for g in self.structure.groups for t in g.tensors):
            weight: Any = model.get_submodule(module).weight
            wide = weight.detach().float()
            self.result.weights["l1", module] = wide.abs().sum(1 - dim).cpu()
            self.result.weights["l2", module] = wide.square().sum(1 - dim).cpu()

    def hook(self, model: nn.Module) -> Iterator[Any]:
        for group in self.structure.groups:
            if not self.needs.isdisjoint({"input_sum", "input_square_sum"}):
                yield model.get_submodule(group.output.module).register_forward_pre_hook(self._on_input(group))
            if not self.needs.isdisjoint(_FROM_GRADIENTS):
                for module, dim in group.tensors:
                    yield model.get_submodule(module).register_forward_hook(self._on_forward(module, dim))

    def token_mask(self) -> Tensor:
        """``[batch, seq_len]`` float32 of the batch that is running: 0 where there is padding."""
        return self.mask

    def run(
        self,
        model: nn.Module,
        windows: Windows,
        batch_size: int,
        handles: Iterable[Any],
        *,
        backward: bool,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """One pass over the pool with these hooks, which are removed afterwards."""
        try:
            with evaluation_mode(model), frozen(model), torch.set_grad_enabled(backward), hooked(handles):
                for rows in batches(len(windows.input_ids), batch_size, progress):
                    self.batch(model, windows, rows, backward)
        except _NotFinite as found:  # looked into without the hooks
            row, device = slice(found.sample, found.sample + 1), next(model.parameters()).device
            layer = first_not_finite(model, windows.input_ids[row].to(device), windows.attention_mask[row].to(device))
            got = f"{found.loss} on sample {found.sample}, not finite from {layer} on"
            raise ModelError(f"calibration: expected a finite loss, got {got}; use bfloat16 or float32") from None

    def batch(self, model: nn.Module, windows: Windows, rows: slice, backward: bool) -> None:
        device = next(model.parameters()).device
        ids, mask = windows.input_ids[rows].to(device), windows.attention_mask[rows].to(device)
        self.rows, self.mask = rows, mask.float()
        self.result.tokens[rows] = self.mask.sum(1).cpu()
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_(backward)  # type: ignore[operator]
        labels = windows.labels[rows].to(device)
        counts = (labels[:, 1:] != IGNORED).sum(1)
        if bool((counts == 0).any()):
            raise DataError(f"calibration: expected a token to predict, got none in sample {rows.start + int(counts.argmin())}")
        losses = next_token_losses(model, labels, inputs_embeds=embedded, attention_mask=mask).sum(1) / counts
        if not bool(torch.isfinite(losses).all()):
            bad = rows.start + int((~torch.isfinite(losses)).nonzero()[0])
            raise _NotFinite(bad, float(losses[bad - rows.start].detach()))
        self.result.loss[rows] = losses.detach().float().cpu()
        if backward:
            losses.sum().backward()

    def check(self) -> None:
        for tables in (self.result.member, self.result.inputs, self.result.weights):
            for (kind, owner), values in tables.items():
                if not bool(torch.isfinite(values).all()):
                    sample = f" on sample {int((~torch.isfinite(values)).any(1).nonzero()[0])}" if values.ndim == 2 else ""
                    raise ModelError(
                        f"calibration: expected finite statistics, got inf or nan in {kind!r} of {owner}{sample}; use bfloat16 or float32"
                    )

    def _store(self, table: dict[tuple[str, str], Tensor], key: tuple[str, str], values: Tensor) -> None:
        if key not in table:
            table[key] = torch.zeros(self.result.samples, values.shape[1])
        table[key][self.rows] = values.detach().float().cpu()

    def _on_input(self, group: UnitGroup) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            states = in_sequences(arguments[0].detach(), len(self.mask)).float() * self.mask[..., None]
            self._store(self.result.inputs, ("input_sum", group.name), states.sum(1))
            self._store(self.result.inputs, ("input_square_sum", group.name), states.square().sum(1))

        return hook

    def _on_forward(self, module: str, dim: int) -> Any:
        wanted = self.needs & _FROM_GRADIENTS
        from_outputs = dim == 0 and wanted == {"first"}

        def hook(linear: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            batch = len(self.mask)
            # Detached before the hook closes over them: a hook that holds the tensor it is registered on is a cycle through autograd,
            # which no garbage collector sees. One of the two is held until the gradient comes.
            held = in_sequences((output if from_outputs else arguments[0]).detach(), batch)
            weight: Any = linear.weight
            bias: Any = linear.bias

            def on_gradient(gradient: Tensor) -> None:
                wide = in_sequences(gradient, batch).float()
                if from_outputs:
                    linear_part = held.float() - (0 if bias is None else bias.detach().float())
                    found = {"first": (linear_part * wide).sum(1)}
                elif wanted == {"first"}:
                    found = {"first": (held.float() * (wide @ weight.detach().float())).sum(1)}
                else:
                    found = sums_of_products(weight.detach().float(), wide, held.float(), dim, wanted)
                for kind, rows in found.items():
                    self._store(self.result.member, (kind, module), rows)

            output.register_hook(on_gradient)

        return hook


def sums_of_products(weight: Tensor, gradients: Tensor, inputs: Tensor, dim: int, kinds: Collection[str]) -> dict[str, Tensor]:
    """``first``, ``first_absolute`` and ``second`` ``[batch, rows]`` of W * G, with every sample's own G = sum_t dL/dy_t x_t^T.

    On a CPU a few rows of a product at a time, so that they are reduced before they leave its cache.

    Args:
        weight: ``[out, in]`` float32.
        gradients: dL/dy ``[batch, seq_len, out]`` float32.
        inputs: x ``[batch, seq_len, in]`` float32.
        dim: 0 for sums over each row of the weight, 1 for each column.
    """
    outputs = len(weight)
    parts = -(-weight.numel() // _CACHED_VALUES) if weight.device.type == "cpu" else 1
    step = -(-outputs // parts)
    found = {kind: gradients.new_zeros(len(gradients), weight.shape[dim]) for kind in sorted(kinds)}
    for sample, (gradient, states) in enumerate(zip(gradients, inputs, strict=True)):
        for start in range(0, outputs, step):
            rows = slice(start, start + step)
            into = rows if dim == 0 else slice(None)
            products = (gradient[:, rows].T @ states).mul_(weight[rows])
            for kind, sums in found.items():  # second comes last: it squares in place
                sums[sample, into].add_(_REDUCTIONS[kind](products, 1 - dim))
    return found


#: Statistic -> sums of the products over a dimension; that of ``second`` changes them.
_REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "first": lambda products, over: products.sum(over),
    "first_absolute": lambda products, over: products.abs().sum(over),
    "second": lambda products, over: products.square_().sum(over),
}
