"""One projection's refit as sums over tokens, and the solvers: ridge, a choice among ridges, a rotation.

With the kept weights W and bias b and the targets y, r = y - W x - b is what the projection leaves. A refit adds (D, d) to
(W, b) such that

    sum_t || D x_t + d - r_t ||^2 + sum_c lambda_c || D_c ||^2

is least; lambda_c is relative to the channel's own sum of squares, as if inputs were standardised, or to the mean over channels; d,
where it is fitted, is not penalised. In terms of D nothing is lost to rounding where r is zero: such weights do not change.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapruner.errors import ModelError
from adapruner.importance.moments import InputMoments
from adapruner.recovery.configuration import Ridge
from adapruner.recovery.rotation import rotation_change

_TINY = 1e-30


@dataclass
class RefitEquations:
    """The sums that a refit needs, float32."""

    inputs: InputMoments
    cross: Tensor
    """``[out, channels]``: sum of r x^T."""
    residual: Tensor
    """``[out]``: sum of r."""

    @classmethod
    def empty(cls, outputs: int, channels: int, device: torch.device | None = None) -> RefitEquations:
        """Nothing seen yet."""
        zeros = torch.zeros(outputs, channels, device=device), torch.zeros(outputs, device=device)
        return cls(InputMoments.empty(channels, device), *zeros)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All sums; what several processes saw adds up."""
        return *self.inputs.tensors, self.cross, self.residual

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Takes in a batch whose targets ``[batch, seq_len, out]`` are y, not r; :meth:`less` comes when all are in.

        Args:
            inputs: ``[batch, seq_len, channels]``.
            weights: ``[batch]``, how much each window counts; windows with 0 cost nothing.
        """
        counted = weights > 0
        if not bool(counted.any()):
            return
        if not bool(counted.all()):
            inputs, targets, weights = inputs[counted], targets[counted], weights[counted]
        self.inputs.add(inputs, weights[:, None])
        weighted = targets.float() * weights[:, None, None]
        self.cross.addmm_(weighted.flatten(0, 1).T, inputs.float().flatten(0, 1))
        self.residual += weighted.sum((0, 1))

    def less(self, kept: Tensor, bias: Tensor | None) -> RefitEquations:
        """The equations for r = y - W x - b from those for y."""
        cross = self.cross - kept @ self.inputs.gram
        residual = self.residual - kept @ self.inputs.total
        if bias is not None:
            cross -= torch.outer(bias, self.inputs.total)
            residual -= bias * self.inputs.tokens
        return RefitEquations(self.inputs, cross, residual)

    def plus(self, other: RefitEquations) -> RefitEquations:
        """The equations of both sets of tokens together."""
        return RefitEquations(self.inputs.plus(other.inputs), self.cross + other.cross, self.residual + other.residual)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Gram and cross about the means: what is left when the best intercept is put in."""
        mean = self.inputs.total / self.inputs.tokens.clamp_min(_TINY)
        return torch.addr(self.inputs.gram, self.inputs.total, mean, alpha=-1), torch.addr(self.cross, self.residual, mean, alpha=-1)

    def error(self, change: Tensor, offset: Tensor | None) -> float:
        """sum ||D x + d - r||^2 less sum ||r||^2, which no refit changes."""
        total = (change @ self.inputs.gram * change).sum() - 2 * (change * self.cross).sum()
        if offset is not None:
            total = total + self.inputs.tokens * offset.square().sum() + 2 * offset @ (change @ self.inputs.total - self.residual)
        return float(total)


@dataclass(frozen=True)
class Solver:
    """How one set of equations becomes a change of weights and bias."""

    ridge: Ridge = field(default_factory=Ridge)
    rotation: bool = False
    intercept: bool = False
    """Whether d is fitted; else it is zero."""
    precision: torch.dtype = torch.float64
    """Precision of the Cholesky factor. float32 falls back to float64 where it fails."""

    def solve(self, equations: RefitEquations, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        """D ``[out, channels]`` and d ``[out]`` (or ``None``), float32; not finite where there is no solution."""
        gram, cross = equations.centred() if self.intercept else (equations.inputs.gram, equations.cross)
        if self.rotation:
            change = rotation_change(gram, cross, kept)
        else:
            change = solve_ridge(gram, cross, self.ridge.of(equations.inputs.gram), self.precision)
        if not self.intercept:
            return change, None
        return change, (equations.residual - change @ equations.inputs.total) / equations.inputs.tokens.clamp_min(_TINY)

    def best_of(self, candidates: list[float], train: RefitEquations, held_out: RefitEquations, kept: Tensor) -> Solver:
        """The same with the ridge that leaves the least error on tokens that it was not fitted to.

        A Cholesky factor for each candidate: one eigendecomposition for all of them costs as much as 4 (width 256) to 9 (1376).
        """
        errors = []
        for ridge in candidates:
            solver = replace(self, ridge=replace(self.ridge, strength=ridge))
            errors.append((held_out.error(*solver.solve(train, kept)), solver))
        finite = [(error, solver) for error, solver in errors if error == error]
        return min(finite, key=lambda pair: pair[0])[1] if finite else errors[-1][1]


def solve_ridge(gram: Tensor, cross: Tensor, penalty: Tensor, precision: torch.dtype = torch.float64) -> Tensor:
    """cross (gram + diag(penalty))^-1 ``[out, channels]`` float32, by Cholesky; nan where the matrix is not positive definite."""
    damped = gram.to(precision, copy=True)
    damped.diagonal().add_(penalty.to(precision))
    factor, failed = torch.linalg.cholesky_ex(damped)
    del damped
    if int(failed):
        if precision != torch.float64:
            return solve_ridge(gram, cross, penalty)
        return torch.full_like(cross, torch.nan)
    return torch.cholesky_solve(cross.T.to(precision), factor).T.float()


def refit(projection: Any, equations: RefitEquations, solver: Solver, name: str) -> None:
    """Gives a projection its new weights, and its new bias where the solver fits one, as new parameters.

    New ones, because where nothing was cut the old ones are the dense model's own, which ``restored`` puts back.

    Raises:
        ModelError: if there is no finite solution; the message has the projection's name.
    """
    kept = projection.weight.detach().float()
    change, offset = solver.solve(equations, kept)
    if not bool(torch.isfinite(change).all()):
        above = solver.ridge.strength
        raise ModelError(f"reconstruction: expected a finite solution in {name}, got none; raise reconstruction.ridge above {above}")
    projection.weight = _like(projection.weight, kept + change)
    if offset is not None and projection.bias is not None:
        projection.bias = _like(projection.bias, projection.bias.detach().float() + offset)


def _like(parameter: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(parameter.dtype).contiguous(), requires_grad=parameter.requires_grad)
