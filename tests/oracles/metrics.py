"""Every metric once more, slowly, from its formula: loops over units, full weight gradients, no cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adapruner.models.units import UnitGroup

Gradients = list[dict[str, Tensor]]
"""Per sample: module name -> dL_n/dW."""


def gather(model: Any, windows: Any) -> tuple[Gradients, dict[str, Tensor]]:
    """Every sample's weight gradients, and the input of every linear layer ``[samples, tokens, in]``."""
    gradients: Gradients = []
    inputs: dict[str, list[Tensor]] = {}
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    for row in range(len(windows.input_ids)):
        handles = []
        for name, linear in linears.items():
            box = inputs.setdefault(name, [])
            handles.append(linear.register_forward_pre_hook(lambda _, a, box=box: box.append(a[0][0].detach())))
        model.zero_grad()
        model(windows.input_ids[row : row + 1], labels=windows.labels[row : row + 1], use_cache=False).loss.backward()
        gradients.append({name: m.weight.grad.clone() for name, m in linears.items() if m.weight.grad is not None})
        for handle in handles:
            handle.remove()
    return gradients, {name: torch.stack(rows) for name, rows in inputs.items()}


def states_of(model: Any, structure: Any, windows: Any) -> dict[str, list[Tensor]]:
    """Group name -> per sample, ``[tokens, channels]`` float64 without padding, each sample run alone."""
    seen: dict[str, list[Tensor]] = {g.name: [] for g in structure.groups}
    for row in range(len(windows.input_ids)):
        length = int(windows.attention_mask[row].sum())
        handles = [
            model.get_submodule(g.output.module).register_forward_pre_hook(lambda _, a, g=g: seen[g.name].append(a[0][0].double()))
            for g in structure.groups
        ]
        with torch.no_grad():
            model(windows.input_ids[row : row + 1, :length])
        for handle in handles:
            handle.remove()
    return seen


def _own(group: UnitGroup, unit: int, member: Any, matrix: Tensor) -> Tensor:
    """The unit's rows (or columns, as rows) of a matrix."""
    positions = sorted({int(member.index[c]) for c in range(unit * group.channels_per_unit, (unit + 1) * group.channels_per_unit)})
    return matrix[positions] if member.dim == 0 else matrix.T[positions]


def _per_unit(group: UnitGroup, score: Callable[[int], Tensor]) -> Tensor:
    return torch.stack([score(unit) for unit in range(group.units)])


def unit_scores(name: str, model: Any, group: UnitGroup, gradients: Gradients, inputs: dict[str, Tensor], weights: Tensor) -> Tensor:
    """``[units]``: the metric summed over coupled tensors and over the unit's channels."""

    def matrix(member: Any) -> Tensor:
        found: Tensor = model.get_submodule(member.module).weight.detach()
        return found

    mean = {m.module: sum(w * g[m.module] for w, g in zip(weights, gradients, strict=True)) for m in group.members}
    plain = {m.module: sum(g[m.module] for g in gradients) / len(gradients) for m in group.members}
    squares = {m.module: sum(g[m.module] ** 2 for g in gradients) / len(gradients) for m in group.members}
    output, states = group.output, inputs[group.output.module]
    tokens = states.shape[1]

    def over_members(score: Callable[[Any, int], Tensor]) -> Tensor:
        return _per_unit(group, lambda u: torch.stack([score(m, u) for m in group.members]).sum())

    def columns(unit: int) -> range:
        return range(unit * group.channels_per_unit, (unit + 1) * group.channels_per_unit)

    def gate(unit: int, gradient: Tensor) -> Tensor:
        return (_own(group, unit, output, matrix(output)) * _own(group, unit, output, gradient)).sum()

    def variance(channel: int) -> Tensor:
        average = sum(w * x[:, channel].sum() for w, x in zip(weights, states, strict=True)) / tokens
        return sum(w * (x[:, channel] - average).square().sum() for w, x in zip(weights, states, strict=True)) / tokens  # type: ignore[return-value]

    def running_deviation(channel: int) -> Tensor:
        so_far, average, total = 0.0, torch.zeros(()), torch.zeros(())
        for w, x in zip(weights.tolist(), states, strict=True):
            so_far += w
            average = average + w / so_far * (x[:, channel].mean() - average)
            total = total + w * (x[:, channel] - average).square().sum() * (so_far - w) / so_far
        return total

    def flap(channel: int) -> Tensor:
        score = matrix(output)[:, channel].square().sum() * running_deviation(channel)
        return score**2 if group.kind == "attention" else score

    def norm(channel: int) -> Tensor:
        total: Any = sum(w * x[:, channel].square().sum() for w, x in zip(weights, states, strict=True))
        root: Tensor = (total / tokens).sqrt()
        return root

    def standardised_wanda() -> Tensor:
        scores = torch.stack([matrix(output)[:, c].abs().sum() * norm(c) for c in range(group.channels)])
        z = (scores - scores.mean()) / (scores - scores.mean()).square().mean().sqrt()
        return _per_unit(group, lambda u: torch.stack([z[c] - z.min() for c in columns(u)]).sum())

    def left_by_a_refit(unit: int) -> Tensor:
        rows = states.flatten(0, 1).double()
        gram = rows.T @ rows / len(rows)
        inverse = torch.linalg.inv(gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64))
        own = torch.tensor(columns(unit))
        part = matrix(output)[:, own].double()
        return torch.trace(part @ torch.linalg.inv(inverse[own][:, own]) @ part.T).float()

    formulas: dict[str, Callable[[], Tensor]] = {
        "taylor_first": lambda: over_members(lambda m, u: _own(group, u, m, matrix(m) * plain[m.module]).abs().sum()),
        "taylor_mix": lambda: over_members(
            lambda m, u: _own(group, u, m, matrix(m) * plain[m.module] - 0.5 * matrix(m) * squares[m.module] * matrix(m)).abs().sum()
        ),
        "taylor_first_cached": lambda: over_members(
            lambda m, u: sum(
                w * _own(group, u, m, matrix(m) * g[m.module]).abs().sum()  # type: ignore[misc]
                for w, g in zip(weights, gradients, strict=True)
            )
        ),
        "activation_norm": lambda: _per_unit(group, lambda u: torch.stack([norm(c) for c in columns(u)]).sum()),
        "flap_ifv": lambda: _per_unit(group, lambda u: torch.stack([variance(c) for c in columns(u)]).sum()),
        "flap": lambda: _per_unit(group, lambda u: torch.stack([flap(c) for c in columns(u)]).sum()),
        "flap_wifn": standardised_wanda,
        "obs": lambda: _per_unit(group, left_by_a_refit),
        "l1": lambda: over_members(lambda m, u: _own(group, u, m, matrix(m)).abs().sum()),
        "l2": lambda: over_members(lambda m, u: _own(group, u, m, matrix(m)).square().sum()),
        "taylor_vectorize": lambda: over_members(lambda m, u: _own(group, u, m, matrix(m) * mean[m.module]).sum(1).abs().sum()),
        "taylor_second": lambda: over_members(
            lambda m, u: sum(
                w * _own(group, u, m, (matrix(m) * g[m.module]).square()).sum()  # type: ignore[misc]
                for w, g in zip(weights, gradients, strict=True)
            )
        ),
        "gate_taylor": lambda: _per_unit(group, lambda u: gate(u, mean[output.module]).abs()),
        "gate_fisher": lambda: _per_unit(
            group,
            lambda u: sum(w * gate(u, g[output.module]) ** 2 for w, g in zip(weights, gradients, strict=True)),  # type: ignore[arg-type,return-value]
        ),
        "wanda_sp": lambda: _per_unit(group, lambda u: torch.stack([matrix(output)[:, c].abs().sum() * norm(c) for c in columns(u)]).sum()),
        "flap_wifv": lambda: _per_unit(
            group, lambda u: torch.stack([matrix(output)[:, c].square().sum() * variance(c) for c in columns(u)]).sum()
        ),
    }
    return formulas[name]()
