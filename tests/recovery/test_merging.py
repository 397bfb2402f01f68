"""Adapters in weights of 16 bits; the oracle is the sum in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapruner.recovery.lora import LoRAConfig, attach_lora
from adapruner.recovery.merging import merge_lora, round_by_chance
from tests.tiny import tiny_llama

HALVES = [torch.bfloat16, torch.float16]


def adapted(dtype: torch.dtype, size: float) -> tuple[Any, dict[str, Tensor]]:
    """A model with adapters of about ``size`` times the weights, and the exact sums by the name of the layer."""
    model = tiny_llama(intermediate_size=64).to(dtype)
    wrapped = attach_lora(model, LoRAConfig(r=4, alpha=4, dropout=0.0))
    torch.manual_seed(1)
    sums = {}
    for name, layer in wrapped.named_modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            nn.init.normal_(a)
            nn.init.normal_(b)
            weight = layer.get_base_layer().weight
            b.data *= size * float(weight.float().std()) / float((b.float() @ a.float()).std())
            sums[name.removeprefix("base_model.model.")] = weight.double() + b.double() @ a.double()
    return wrapped, sums


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("low", [True, False])
def test_rounding_takes_a_neighbour_and_keeps_the_mean(dtype: torch.dtype, low: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, generator=generator) * (1e-6 if low else 3.0)  # the former below float16's normal numbers
    many = values.expand(4000, -1)
    rounded = round_by_chance(many, dtype, generator)
    assert rounded.dtype == dtype
    nearest = values.to(dtype)
    away = torch.where(nearest.float() < values, torch.inf, -torch.inf)
    other = torch.nextafter(nearest, away.to(dtype)) if dtype == torch.bfloat16 else None
    if other is not None:
        assert torch.all((rounded == nearest) | (rounded == other))
    step = (rounded.double().amax(0) - rounded.double().amin(0)).clamp_min(1e-12)
    assert torch.all((rounded.double().mean(0) - values.double()).abs() < 0.05 * step)


@pytest.mark.parametrize("dtype", HALVES)
def test_numbers_that_fit_stay_and_so_does_zero(dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(1000), torch.zeros(3), torch.tensor([1.0, -2.0, 1e-4])]).to(dtype)
    many = values.float().expand(2000, -1)
    assert torch.equal(round_by_chance(many, dtype), values.expand(2000, -1))


def test_what_is_too_large_for_the_precision_stays_finite() -> None:
    values = torch.tensor([65510.0, -65519.0, 1e30])
    assert round_by_chance(values, torch.float16).tolist() == [65504.0, -65504.0, 65504.0]


@pytest.mark.parametrize("dtype", HALVES)
def test_adapters_that_were_not_trained_change_nothing(dtype: torch.dtype) -> None:
    model = tiny_llama(intermediate_size=64).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = merge_lora(attach_lora(model, LoRAConfig())).state_dict()
    assert all(torch.equal(merged[name], value) for name, value in before.items())


def test_of_a_small_update_the_nearest_number_keeps_nothing() -> None:
    """Why it is done: an update of a tenth of a step, which all weights share, is seen by an input of ones."""
    weights = torch.full((64, 4096), 1.0, dtype=torch.bfloat16)
    update = 0.1 * 2.0**-7
    nearest = (weights.float() + update).to(torch.bfloat16)
    chance = round_by_chance(weights.float() + update, torch.bfloat16, torch.Generator().manual_seed(0))
    assert torch.equal(nearest, weights)
    kept = (chance.float() - 1.0).sum(1) / (4096 * update)
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
    assert kept.sub(1).abs().max() < 0.25


@pytest.mark.parametrize("dtype", HALVES)
def test_merged_weights_are_the_sums_up_to_a_step(dtype: torch.dtype) -> None:
    model, sums = adapted(dtype, 0.5)
    merged = merge_lora(model)
    step = torch.finfo(dtype).eps
    for name, exact in sums.items():
        weight = merged.get_submodule(name).weight
        assert weight.dtype == dtype
        assert torch.all((weight.double() - exact).abs() <= step * exact.abs() + 1e-7)
    assert not hasattr(merged, "peft_config")
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_a_small_update_is_kept_in_the_direction_that_it_has() -> None:
    """Projection of what the merge changed on the update: 1 where all is there."""
    model, sums = adapted(torch.bfloat16, 1e-3)
    before = {name: model.base_model.model.get_submodule(name).get_base_layer().weight.double().clone() for name in sums}
    by_peft = copy.deepcopy(model).merge_and_unload()
    ours = merge_lora(model)

    def kept(merged: Any) -> float:
        changes = [(merged.get_submodule(n).weight.double() - before[n], sums[n] - before[n]) for n in sums]
        return float(sum((got * wanted).sum() for got, wanted in changes) / sum((wanted * wanted).sum() for _, wanted in changes))

    assert kept(ours) == pytest.approx(1.0, abs=0.1)
    assert kept(by_peft) < 0.8


def test_equal_merges_are_equal_and_float32_is_the_library_s_own() -> None:
    model, _ = adapted(torch.bfloat16, 0.01)
    first, second = (merge_lora(copy.deepcopy(model)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model, _ = adapted(torch.float32, 0.01)
    by_peft, ours = copy.deepcopy(model).merge_and_unload().state_dict(), merge_lora(model).state_dict()
    assert all(torch.equal(by_peft[name], ours[name]) for name in ours)
