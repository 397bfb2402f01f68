"""The local form against explicit normal equations, and as a trial uses it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapruner.errors import PlanError
from adapruner.importance.gram import collect_grams
from adapruner.models.tracing import trace_structure
from adapruner.pruning.surgery import prune_model
from adapruner.recovery.configuration import Ridge
from adapruner.recovery.local import pruned_and_refitted, refit_locally
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from tests.oracles.reconstruction import CASES, plan_for, watch
from tests.oracles.surgery import assert_same, snapshot
from tests.tiny import random_windows, tiny_llama

WINDOWS = random_windows(6, 24, seed=5)
PARTS = torch.tensor([0, 0, 1, 1, 1, 0])
PART_WEIGHTS = torch.tensor([0.2, 0.8])
WEIGHTS = torch.where(PARTS == 0, 0.2 / 3, 0.8 / 3)


def expected_refit(
    inputs: Tensor, weights: Tensor, projection: nn.Linear, channels: Tensor, ridge: float, intercept: bool
) -> tuple[Tensor, Tensor | None]:
    """(W C[:, K] + W_K L) (C[K, K] + L)^-1, L = lambda diag C[K, K], in float64, with a row of ones beside x for an intercept."""
    rows, root = inputs.double(), weights.double().sqrt().repeat_interleave(24)[:, None]
    dense = projection.weight.detach().double()
    x, y = root * rows[:, channels], root * (rows @ dense.T)
    strength = ridge * x.square().sum(0).diag()
    anchor = dense[:, channels] @ strength
    if projection.bias is not None and intercept:
        y = y + root * projection.bias.detach().double()
        x, strength = torch.cat([x, root], 1), nn.functional.pad(strength, (0, 1, 0, 1))
        anchor = nn.functional.pad(anchor, (0, 1))
    solution = torch.linalg.solve(x.T @ x + strength, (y.T @ x + anchor).T).T
    return solution[:, : len(channels)], solution[:, -1] if solution.shape[1] > len(channels) else None


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_refit_solves_the_normal_equations(case: str, intercept: bool) -> None:
    dense = tiny_llama(**CASES[case])
    structure = trace_structure(dense)
    plan, whole = plan_for(structure), watch(dense, WINDOWS.input_ids)
    trial, refitted = copy.deepcopy(dense), copy.deepcopy(dense)
    before = snapshot(trial)
    grams = collect_grams(trial, structure, WINDOWS, PARTS, 2)
    config = ReconstructionConfig(form="local", ridge=0.03, intercept=intercept, batch_size=4)
    prune_and_reconstruct(refitted, structure, plan, WINDOWS.input_ids, config, sample_weights=WEIGHTS)
    with pruned_and_refitted(trial, structure, plan, grams, PART_WEIGHTS, Ridge(0.03), intercept=intercept):
        for group in structure.groups:
            name, original = group.output.module, dense.get_submodule(group.output.module)
            channels = group.channels_of(plan.kept[group.name])
            weight, bias = expected_refit(whole[f"{name}.in"], WEIGHTS, original, channels, 0.03, intercept)
            for model in (trial, refitted):
                found = model.get_submodule(name)
                if plan.keeps_all(group):
                    assert torch.equal(found.weight, original.weight)
                    continue
                torch.testing.assert_close(found.weight.double(), weight, rtol=2e-3, atol=2e-4)
                if original.bias is not None:
                    level = original.bias.double() if bias is None else bias
                    torch.testing.assert_close(found.bias.double(), level, rtol=2e-3, atol=2e-4)
    assert_same(before, snapshot(trial))


def test_a_bias_that_the_dense_model_lacks_is_fitted_or_allowed_for() -> None:
    """As bias compensation leaves it: the projection has one only after the cut."""
    dense = tiny_llama()
    structure = trace_structure(dense)
    plan, group = plan_for(structure), structure.group(1, "ffn")
    name, grams = group.output.module, collect_grams(dense, structure, WINDOWS)
    inputs = watch(dense, WINDOWS.input_ids)[f"{name}.in"].float()
    weight = dense.get_submodule(name).weight.detach()
    x = inputs[:, group.channels_of(plan.kept[group.name])]
    errors = {}
    for intercept in (True, False, None):
        cut = copy.deepcopy(dense)
        prune_model(cut, structure, plan)
        projection = cut.get_submodule(name)
        if intercept is not None:
            projection.bias = nn.Parameter(torch.linspace(-1, 1, 32))
        with torch.no_grad():
            refit_locally(cut, group, plan.kept[group.name], grams.moments(group.name), weight, None, intercept=intercept is True)
            errors[intercept] = float((projection(x) - inputs @ weight.T).square().mean())
    assert errors[True] < errors[None] < errors[False]
    assert torch.equal(projection.weight, projection.weight.contiguous())


def test_nothing_removed_changes_no_bit() -> None:
    for form in ("local", "sequential"):
        model = tiny_llama(attention_bias=True, mlp_bias=True)
        structure = trace_structure(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        plan = plan_for(structure, keep=1)
        with pruned_and_refitted(model, structure, plan, collect_grams(model, structure, WINDOWS)):
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        for constraint in ("ridge", "rotation"):
            options: Any = {"form": form, "constraint": constraint}
            config = ReconstructionConfig(**options)
            prune_and_reconstruct(model, structure, plan, WINDOWS.input_ids, config)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_output_is_nearer_to_the_dense_one() -> None:
    dense, cut = tiny_llama(), tiny_llama()
    structure = trace_structure(dense)
    plan, grams = plan_for(structure, keep=0.7), collect_grams(dense, structure, WINDOWS)
    prune_model(cut, structure, plan)
    whole, pruned = watch(dense, WINDOWS.input_ids), watch(cut, WINDOWS.input_ids)
    with pruned_and_refitted(dense, structure, plan, grams):
        now = watch(dense, WINDOWS.input_ids)
    end = "model.layers.2.out"
    assert float((now[end] - whole[end]).square().mean()) < 0.9 * float((pruned[end] - whole[end]).square().mean())


def test_dense_tensors_come_back_after_an_error() -> None:
    model = tiny_llama()
    structure = trace_structure(model)
    grams, before = collect_grams(model, structure, WINDOWS), snapshot(model)
    with pytest.raises(ZeroDivisionError, match="division"), pruned_and_refitted(model, structure, plan_for(structure), grams):
        _ = 1 / 0
    assert_same(before, snapshot(model))
    other = trace_structure(tiny_llama(intermediate_size=96))
    with pytest.raises(PlanError, match="plan: expected units 160"), pruned_and_refitted(model, structure, plan_for(other), grams):
        pass
