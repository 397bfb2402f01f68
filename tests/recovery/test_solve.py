from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapruner.errors import ModelError
from adapruner.recovery.configuration import Ridge
from adapruner.recovery.solve import RefitEquations, Solver, refit, solve_ridge

CANDIDATES = [1e-4, 1e-2, 1.0, 100.0]


def sample(seed: int, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``[batch, seq_len, channels]``, targets, window weights; one window does not count."""
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.randn(6, 5, 8, generator=generator) + 0.5) * torch.logspace(-1, 1, 8)
    truth = torch.randn(4, 8, generator=torch.Generator().manual_seed(99))
    targets = inputs @ truth.T + 1.0 + noise * torch.randn(6, 5, 4, generator=generator)
    return inputs, targets, torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 1.5])


def equations(inputs: Tensor, targets: Tensor, weights: Tensor, kept: Tensor, bias: Tensor | None) -> RefitEquations:
    found = RefitEquations.empty(4, 8)
    for part in (slice(0, 4), slice(4, 6)):
        found.add(inputs[part], targets[part], weights[part])
    return found.less(kept, bias)


def oracle(inputs: Tensor, targets: Tensor, weights: Tensor, kept: Tensor, bias: Tensor | None, ridge: Ridge) -> tuple[Tensor, Tensor]:
    """Least squares with a column of ones for the intercept (where there is a bias), and rows for the ridge."""
    root = weights.sqrt().repeat_interleave(5).double()[:, None]
    x, y = root * inputs.flatten(0, 1).double(), root * targets.flatten(0, 1).double()
    squares = x.square().sum(0)
    scale = (ridge.strength * (squares if ridge.relative_to == "channel" else squares.mean().expand(8))).sqrt()
    left = torch.cat([x, scale.diag()])
    if bias is not None:
        left = torch.cat([left, torch.cat([root, torch.zeros(8, 1, dtype=torch.float64)])], 1)
    solution = torch.linalg.lstsq(left, torch.cat([y, scale[:, None] * kept.double().T])).solution.T
    return solution[:, :8], solution[:, 8] if bias is not None else torch.zeros(4, dtype=torch.float64)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("relative_to", ["channel", "mean"])
def test_ridge_with_and_without_intercept(biased: bool, precision: torch.dtype, relative_to: Any) -> None:
    ridge = Ridge(0.05, relative_to)
    inputs, targets, weights = sample(0)
    kept, bias = torch.randn(4, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([0.3, -2.0, 0.0, 1.0]) if biased else None
    found = equations(inputs, targets, weights, kept, bias)
    change, offset = Solver(ridge, intercept=biased, precision=precision).solve(found, kept)
    expected, level = oracle(inputs, targets, weights, kept, bias, ridge)
    torch.testing.assert_close((kept + change).double(), expected, rtol=1e-3, atol=1e-4)
    assert (offset is None) == (bias is None)
    if offset is not None and bias is not None:
        torch.testing.assert_close((bias + offset).double(), level, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_candidates_are_chosen_by_the_held_out_error(biased: bool) -> None:
    kept, bias = torch.zeros(4, 8), torch.zeros(4) if biased else None
    chosen = set()
    for noise in (0.0, 30.0):
        train, held = sample(1, noise), sample(2, 0.3)
        pair = [equations(*part, kept, bias) for part in (train, held)]
        solver = Solver(Ridge(0.7), intercept=biased).best_of(CANDIDATES, *pair, kept)
        errors = []
        for strength in CANDIDATES:
            weight, level = oracle(*train, kept, bias, Ridge(strength))
            left = held[0].double() @ weight.T + level - held[1].double()
            errors.append(float((left.square().sum(2) * held[2][:, None]).sum()))
        assert solver.ridge.strength == CANDIDATES[errors.index(min(errors))]
        assert solver.intercept is biased
        chosen.add(solver.ridge.strength)
    assert len(chosen) == 2  # little where there is no noise, much where there is nothing else


def test_both_sets_together_equal_one() -> None:
    kept = torch.zeros(4, 8)
    (x, y, w), (u, v, z) = sample(1), sample(2)
    both = equations(x, y, w, kept, None).plus(equations(u, v, z, kept, None))
    whole = RefitEquations.empty(4, 8)
    whole.add(torch.cat([x, u]), torch.cat([y, v]), torch.cat([w, z]))
    torch.testing.assert_close(Solver().solve(both, kept)[0], Solver().solve(whole, kept)[0])


def test_rotation_with_an_intercept_is_centred() -> None:
    inputs, targets, weights = sample(3)
    kept, bias = torch.randn(4, 8, generator=torch.Generator().manual_seed(5)), torch.ones(4)
    change, offset = Solver(rotation=True, intercept=True).solve(equations(inputs, targets, weights, kept, bias), kept)
    assert offset is not None
    mass = weights.repeat_interleave(5)[:, None] / (5 * weights.sum())
    x, y = inputs.flatten(0, 1), targets.flatten(0, 1)
    centre = (x - (mass * x).sum(0)) @ kept.T
    left, _, right = torch.linalg.svd(((mass * (y - (mass * y).sum(0))).T @ centre).double())
    turned = (left @ right).float() @ kept
    torch.testing.assert_close(kept + change, turned, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias + offset, (mass * y).sum(0) - turned @ (mass * x).sum(0), rtol=1e-3, atol=1e-4)


def test_single_precision_falls_back_to_double() -> None:
    """A Gram matrix whose smallest eigenvalue is lost in float32."""
    column = torch.ones(40)
    gram = torch.outer(column, column)
    gram[0, 0] += 1e-6  # 1.000001
    cross = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    assert int(torch.linalg.cholesky_ex(gram + 1e-9 * torch.eye(40))[1]) > 0
    wide = gram.double() + 1e-9 * torch.eye(40, dtype=torch.float64)
    expected = torch.linalg.solve(wide, cross.double().T).T.float()
    torch.testing.assert_close(solve_ridge(gram, cross, torch.full((40,), 1e-9), torch.float32), expected, rtol=1e-3, atol=1.0)


def test_no_solution_is_refused() -> None:
    linear = nn.Linear(8, 4, bias=False)
    found = equations(*sample(0), torch.zeros(4, 8), None)
    found.inputs.gram[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"reconstruction: expected a finite solution in 3\.ffn, got none; raise reconstruction\.ridge"):
        refit(linear, found, Solver(), "3.ffn")
