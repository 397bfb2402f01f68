"""What removed units contributed on average comes back as a bias: against means and products made one number at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapruner.errors import DataError, PlanError
from adapruner.importance.statistics import UnitStatistics, collect_statistics
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure, count_parameters
from adapruner.pruning.bias_compensation import NEEDS, count_added_biases, input_means
from adapruner.pruning.masking import masked
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import cut_layer, prune_model, pruned, restored
from tests.oracles.surgery import assert_same, compensated_bias, mean_inputs, plan_of, random_plan, snapshot

Builder = Callable[..., Any]
WEIGHTS = [0.1, 0.0, 0.4, 0.3, 0.2]


def biased_plan(structure: ModelStructure, seed: int) -> PruningPlan:
    return replace(random_plan(structure, seed), output_bias=True)


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("seed", [0, 1])
def test_masked_pruned_and_cut_models_agree(tiny_model: Builder, token_windows: Any, family: str, seed: int) -> None:
    model = tiny_model(family).double()
    structure, windows = trace_structure(model), token_windows(padded=True)
    plan, ids, before = biased_plan(structure, seed), windows.input_ids, snapshot(model)
    means = mean_inputs(model, structure, windows, WEIGHTS)
    with masked(model, structure, plan):
        zeros = logits(model, ids)
    with masked(model, structure, plan, means):
        expected = logits(model, ids)
    assert float((expected - zeros).abs().max()) > 1e-3  # the means do something
    with pruned(model, structure, plan):
        assert float((logits(model, ids) - zeros).abs().max()) < 1e-12
    with pruned(model, structure, plan, means):
        assert float((logits(model, ids) - expected).abs().max()) < 1e-12
    assert_same(before, snapshot(model))
    added = count_added_biases(model, structure)
    prune_model(model, structure, plan, means)
    assert float((logits(model, ids) - expected).abs().max()) < 1e-12
    assert added == (0 if family == "llama_biased" else 2 * 3 * 32)
    assert count_parameters(model) == plan.parameters["pruned"] + added
    assert all(p.is_contiguous() and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", ["llama_gqa_2", "llama_biased"])
def test_biases_are_the_products_summed_one_by_one(tiny_model: Builder, family: str) -> None:
    model = tiny_model(family)
    structure, dense = trace_structure(model), copy.deepcopy(model)
    plan = replace(plan_of(structure, {"1.attention": [1], "2.ffn": [0, 5, 23]}), output_bias=True)
    torch.manual_seed(3)
    means = {g.name: torch.randn(g.channels) for g in structure.groups}
    prune_model(model, structure, plan, means)
    removed = {"1.attention": list(range(16)), "2.ffn": [c for c in range(24) if c not in (0, 5, 23)]}
    for group in structure.groups:
        whole = dense.get_submodule(group.output.module)
        expected = compensated_bias(whole.weight, whole.bias, removed.get(group.name, []), means[group.name])
        got = model.get_submodule(group.output.module).bias
        torch.testing.assert_close(got.detach(), torch.tensor(expected), rtol=0, atol=1e-5)
        if group.name not in removed:  # nothing went: zero, or what was there, to the bit
            assert torch.equal(got, torch.zeros(32) if whole.bias is None else whole.bias)


@pytest.mark.parametrize("padded", [False, True])
def test_means_are_those_over_weighted_tokens(tiny_model: Builder, token_windows: Any, family: str, padded: bool) -> None:
    model = tiny_model(family)
    structure, windows = trace_structure(model), token_windows(padded=padded)
    statistics = collect_statistics(model, structure, windows, needs=NEEDS, batch_size=2)
    expected = mean_inputs(model, structure, windows, WEIGHTS)
    for scale in (1.0, 7.0):  # weights need not sum to one
        means = input_means(statistics, structure, scale * torch.tensor(WEIGHTS))
        assert means.keys() == expected.keys()
        for name, mean in means.items():
            assert mean.dtype == torch.float32
            torch.testing.assert_close(mean.double(), expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("family", ["llama_gqa_2", "llama_biased", "qwen2"])
def test_the_first_pruned_block_gives_its_dense_mean(tiny_model: Builder, token_windows: Any, family: str, kind: str) -> None:
    model = tiny_model(family).double()
    structure, windows = trace_structure(model), token_windows()
    group = structure.group(1, kind)  # type: ignore[arg-type]
    plan = replace(plan_of(structure, {group.name: [0]}), output_bias=True)
    outputs: list[Tensor] = []
    projection = model.get_submodule(group.output.module)
    handle = projection.register_forward_hook(lambda _, __, output: outputs.append(output.flatten(0, 1).mean(0)))
    means = mean_inputs(model, structure, windows, [1.0] * 5)
    outputs.clear()
    logits(model, windows.input_ids)
    with pruned(model, structure, plan, means):
        logits(model, windows.input_ids)
    with pruned(model, structure, plan):
        logits(model, windows.input_ids)
    handle.remove()
    dense, compensated, bare = outputs
    assert float((compensated - dense).abs().max()) < 1e-12
    assert float((bare - dense).abs().max()) > 1e-3


def test_the_plan_alone_makes_the_same_parameters(tiny_model: Builder, token_windows: Any) -> None:
    """As a checkpoint is loaded: dense model, the plan, the weights."""
    model, twin = tiny_model("qwen2"), tiny_model("qwen2")
    structure, windows = trace_structure(model), token_windows()
    plan = biased_plan(structure, 0)
    prune_model(model, structure, plan, mean_inputs(model, structure, windows, WEIGHTS))
    prune_model(twin, structure, plan)
    assert not bool(twin.model.layers[0].mlp.down_proj.bias.any())
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(twin, windows.input_ids), logits(model, windows.input_ids))


def test_a_checkpoint_carries_the_biases(tiny_model: Builder, token_windows: Any, tmp_path: Path) -> None:
    from adapruner.module import PrunableCausalLM

    tiny_model("llama").save_pretrained(tmp_path)
    module, fresh = PrunableCausalLM(str(tmp_path)), PrunableCausalLM(str(tmp_path))
    module.configure_model()
    structure, windows = trace_structure(module.model), token_windows()
    plan = biased_plan(structure, 0)
    prune_model(module.model, structure, plan, mean_inputs(module.model, structure, windows, WEIGHTS))
    module.plan = plan
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(module.state_dict(), strict=True)
    assert fresh.plan == plan
    assert torch.equal(logits(fresh.model.eval(), windows.input_ids), logits(module.model.eval(), windows.input_ids))


def test_sums_are_made_in_float32_and_rounded_once(tiny_model: Builder) -> None:
    model = tiny_model("llama").bfloat16()
    structure, dense = trace_structure(model), copy.deepcopy(model)
    plan = replace(plan_of(structure, {"0.ffn": [3]}), output_bias=True)
    mean = torch.randn(24, generator=torch.Generator().manual_seed(1))
    prune_model(model, structure, plan, {"0.ffn": mean})  # groups that lose nothing need no means
    removed = [c for c in range(24) if c != 3]
    expected = dense.model.layers[0].mlp.down_proj.weight.float()[:, removed] @ mean[removed]
    bias = model.model.layers[0].mlp.down_proj.bias
    assert bias.dtype == torch.bfloat16
    torch.testing.assert_close(bias.float(), expected, rtol=2**-8, atol=1e-6)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_new_biases_require_gradients_as_their_weights(tiny_model: Builder) -> None:
    model = tiny_model("mistral")
    model.model.layers[1].requires_grad_(False)
    structure = trace_structure(model)
    prune_model(model, structure, biased_plan(structure, 2))
    flags = {name: p.requires_grad for name, p in model.named_parameters() if name.endswith("proj.bias")}
    assert len(flags) == 6
    assert all(flag is ("layers.1." not in name) for name, flag in flags.items())


def test_added_biases_go_when_the_block_ends_or_fails(tiny_model: Builder, token_windows: Any, family: str) -> None:
    model = tiny_model(family)
    structure, windows = trace_structure(model), token_windows()
    plan, before = biased_plan(structure, 1), snapshot(model)
    means = mean_inputs(model, structure, windows, WEIGHTS)
    with pytest.raises(RuntimeError, match="in the block"), pruned(model, structure, plan, means):
        raise RuntimeError("in the block")
    assert_same(before, snapshot(model))
    with restored(model, structure):
        for layer in range(structure.layers):
            cut_layer(model, structure, plan, layer, means)
    assert_same(before, snapshot(model))


def test_adapters_are_merged_beside_the_biases(tiny_model: Builder, token_windows: Any) -> None:
    from adapruner.recovery.lora import LoRAConfig, attach_lora
    from adapruner.recovery.merging import merge_lora

    model, windows = tiny_model("llama_gqa_2"), token_windows()
    structure = trace_structure(model)
    prune_model(model, structure, biased_plan(structure, 0), mean_inputs(model, structure, windows, WEIGHTS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = attach_lora(model, LoRAConfig(r=2)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = logits(adapted, windows.input_ids)
    merged: Any = merge_lora(adapted)
    assert list(merged.state_dict()) == list(before)
    biases = [name for name in before if name.endswith("proj.bias")]
    assert len(biases) == 6
    assert all(torch.equal(merged.state_dict()[name], before[name]) for name in biases)
    torch.testing.assert_close(logits(merged, windows.input_ids), expected, rtol=1e-3, atol=1e-3)


def test_wrong_means_change_nothing(tiny_model: Builder) -> None:
    model = tiny_model("llama")
    structure, before = trace_structure(model), snapshot(model)
    plan = replace(plan_of(structure, {"1.ffn": [1], "2.ffn": [0, 2]}), output_bias=True)
    means = {g.name: torch.zeros(g.channels) for g in structure.groups}
    cuts: list[Any] = [prune_model, _enter(pruned), _enter(masked)]
    for cut in cuts:
        with pytest.raises(PlanError, match=r"expected output_bias to be true where means are given, got false"):
            cut(model, structure, replace(plan, output_bias=False), means)
        with pytest.raises(DataError, match=r"expected 24 finite numbers of 1\.ffn, got none; use input_means"):
            cut(model, structure, plan, {name: mean for name, mean in means.items() if name != "1.ffn"})
        with pytest.raises(DataError, match=r"expected 24 finite numbers of 2\.ffn, got shape \(23,\), from 0 to 0; use"):
            cut(model, structure, plan, {**means, "2.ffn": torch.zeros(23)})
        with pytest.raises(DataError, match=r"expected 24 finite numbers of 2\.ffn, got shape \(24,\), from inf to inf; use"):
            cut(model, structure, plan, {**means, "2.ffn": torch.full((24,), float("inf"))})
    assert_same(before, snapshot(model))


def _enter(context: Any) -> Any:
    def run(*arguments: Any) -> None:
        with context(*arguments):
            pytest.fail("the block must not run")

    return run


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], r"expected 3 numbers, none negative, one above 0, got shape \(2,\), from 1 to 1"),
        ([], r"got shape \(0,\); give sample weights"),
        ([0.0, 0.0, 0.0], r"got shape \(3,\), from 0 to 0"),
        ([2.0, -1.0, 0.0], r"got shape \(3,\), from -1 to 2"),
        ([1.0, float("nan"), 0.0], r"got shape \(3,\), from nan to nan"),
        ([1.0, float("inf"), 0.0], r"got shape \(3,\), from 0 to inf"),
    ],
)
def test_wrong_weights_are_refused(tiny_model: Builder, weights: list[float], message: str) -> None:
    statistics = UnitStatistics(3, torch.full((3,), 9.0), torch.ones(3))
    with pytest.raises(DataError, match=message):
        input_means(statistics, trace_structure(tiny_model("llama")), torch.tensor(weights))


def test_statistics_without_sums_are_refused(tiny_model: Builder) -> None:
    statistics = UnitStatistics(3, torch.full((3,), 9.0), torch.ones(3))
    with pytest.raises(DataError, match=r"expected 'input_sum' of 0\.attention, got none; collect it for plans with output_bias"):
        input_means(statistics, trace_structure(tiny_model("llama")), torch.ones(3))
