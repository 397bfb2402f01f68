from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError, DataError, ModelError, PlanError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.surgery import prune_model, restored
from adapruner.recovery.reconstruction import (
    ReconstructionConfig,
    prune_and_reconstruct,
    reconstruction_gib,
    record_dense_stream,
    too_few_tokens,
)
from adapruner.recovery.streams import SharedStream, dense_stream_gib
from tests.oracles.reconstruction import CASES, plan_for, ridge, watch
from tests.tiny import random_windows, tiny_llama

IDS = random_windows(6, 24, seed=5).input_ids


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_refit_is_the_least_squares_solution(case: str, weighted: bool, intercept: bool) -> None:
    dense = tiny_llama(**CASES[case])
    structure = trace_structure(dense)
    plan = plan_for(structure)
    cut, refitted = copy.deepcopy(dense), copy.deepcopy(dense)
    prune_model(cut, structure, plan)
    weights = torch.tensor([1.0, 4.0, 0.0, 2.0, 1.0, 1.0]) if weighted else None
    layers: list[int] = []
    # Batches of 4 and 2: what is recorded for one size must not serve the other.
    config = ReconstructionConfig(ridge=0.03, batch_size=4, intercept=intercept)
    prune_and_reconstruct(refitted, structure, plan, IDS, config, sample_weights=weights, progress=layers.append)
    assert layers == [1, 2, 3]
    whole, now = watch(dense, IDS), watch(refitted, IDS)
    rows = torch.ones(len(IDS)) if weights is None else weights / weights.mean()
    root = rows.sqrt().repeat_interleave(IDS.shape[1]).double()[:, None]
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        o_proj, down_proj = f"{prefix}.self_attn.o_proj", f"{prefix}.mlp.down_proj"
        ends = {o_proj: whole[f"{prefix}.in"] + whole[f"{o_proj}.out"], down_proj: whole[f"{prefix}.out"]}
        starts = {o_proj: now[f"{prefix}.in"], down_proj: now[f"{prefix}.in"] + now[f"{o_proj}.out"]}
        for name in ends:
            linear, kept = refitted.get_submodule(name), cut.get_submodule(name).weight
            fitted = intercept and linear.bias is not None
            target = ends[name] - starts[name] - (0 if fitted or linear.bias is None else linear.bias.double())
            expected = ridge(root * now[f"{name}.in"], root * target, kept, 0.03, root if fitted else None)
            torch.testing.assert_close(linear.weight.double(), expected[:, : kept.shape[1]], rtol=2e-3, atol=4e-4)
            if fitted:
                torch.testing.assert_close(linear.bias.double(), expected[:, -1], rtol=2e-3, atol=2e-4)
            elif linear.bias is not None:
                assert torch.equal(linear.bias, cut.get_submodule(name).bias)
    assert not torch.allclose(refitted.model.layers[1].mlp.down_proj.weight, cut.model.layers[1].mlp.down_proj.weight, atol=0.01)


def test_attention_is_not_run_again_for_the_ffn() -> None:
    """Three batches: dense, pruned up to o_proj, and the first batch in full to see that the module answers with o_proj's output."""
    model, calls = tiny_llama(), []
    structure = trace_structure(model)
    model.model.layers[2].self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    prune_and_reconstruct(model, structure, plan_for(structure), IDS, ReconstructionConfig(batch_size=2))
    assert len(calls) - 1 == 3 + 3 + 1  # and once in the model's own forward, which records how layers are called
    assert "forward" not in vars(model.model.layers[2].self_attn)


def test_nothing_removed_changes_no_bit() -> None:
    model = tiny_llama(attention_bias=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    structure = trace_structure(model)
    prune_and_reconstruct(model, structure, plan_for(structure, keep=1), IDS, ReconstructionConfig())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_huge_ridge_leaves_the_kept_weights() -> None:
    cut, refitted = tiny_llama(), tiny_llama()
    structure = trace_structure(cut)
    plan = plan_for(structure)
    prune_model(cut, structure, plan)
    prune_and_reconstruct(refitted, structure, plan, IDS, ReconstructionConfig(ridge=1e9))
    for name, value in refitted.state_dict().items():
        torch.testing.assert_close(value, cut.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_output_is_nearer_to_the_dense_one(case: str) -> None:
    dense, cut, refitted = (tiny_llama(**CASES[case]) for _ in range(3))
    structure = trace_structure(dense)
    plan = plan_for(structure, keep=0.7)
    prune_model(cut, structure, plan)
    prune_and_reconstruct(refitted, structure, plan, IDS, ReconstructionConfig())
    whole, pruned, now = (watch(model, IDS) for model in (dense, cut, refitted))
    errors = [
        [float((seen[f"model.layers.{i}.out"] - whole[f"model.layers.{i}.out"]).square().mean()) for i in range(3)]
        for seen in (pruned, now)
    ]
    assert all(after < 0.95 * before for before, after in zip(*errors, strict=True)), errors


def test_restored_gives_the_dense_model_back() -> None:
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    structure = trace_structure(model)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    with restored(model, structure):
        prune_and_reconstruct(model, structure, plan_for(structure), IDS, ReconstructionConfig())
        assert model.model.layers[1].mlp.down_proj.weight.shape[1] == 80
    assert [id(p) for p in model.parameters()] == identities
    for name, value in model.state_dict().items():
        assert torch.equal(value, dense[name]), name


def test_half_precision_and_training_mode_stay() -> None:
    model = tiny_llama().bfloat16().train()
    structure = trace_structure(model)
    prune_and_reconstruct(model, structure, plan_for(structure), IDS, ReconstructionConfig(samples=3))
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_samples_are_spread_over_the_pool() -> None:
    """Windows 0, 2 and 5 of six, and their weights, not the first three."""
    chosen, spread = tiny_llama(), tiny_llama()
    structure = trace_structure(chosen)
    plan, weights = plan_for(structure), torch.tensor([1.0, 9.0, 3.0, 9.0, 9.0, 2.0])
    picks = torch.tensor([0, 2, 5])
    prune_and_reconstruct(spread, structure, plan, IDS, ReconstructionConfig(samples=3), sample_weights=weights)
    prune_and_reconstruct(chosen, structure, plan, IDS[picks], ReconstructionConfig(), sample_weights=weights[picks])
    torch.testing.assert_close(spread.state_dict(), chosen.state_dict())


@pytest.mark.parametrize("options", [{}, {"candidates": [0.001, 0.1]}, {"constraint": "rotation"}, {"form": "local"}])
def test_a_recorded_dense_stream_changes_nothing(options: dict[str, Any]) -> None:
    alone, helped = tiny_llama(attention_bias=True), tiny_llama(attention_bias=True)
    structure = trace_structure(alone)
    config = ReconstructionConfig(samples=5, batch_size=2, **options)
    dense = record_dense_stream(helped, structure, IDS, config)
    for seed in (3, 4):
        plan = plan_for(structure, seed=seed)
        with restored(alone, structure), restored(helped, structure):
            prune_and_reconstruct(alone, structure, plan, IDS, config)
            prune_and_reconstruct(helped, structure, plan, IDS, config, dense=dense)
            for name, value in alone.state_dict().items():
                assert torch.equal(value, helped.state_dict()[name]), name


def test_a_stream_is_recorded_once_for_the_plans_of_the_same_windows() -> None:
    model = tiny_llama()
    structure, config, shared = trace_structure(model), ReconstructionConfig(samples=5, batch_size=2), SharedStream()
    first = shared.of(model, structure, IDS, config)
    assert first is not None
    assert shared.of(model, structure, IDS, config) is first
    other = shared.of(model, structure, IDS[:3], config)
    assert other is not None
    assert other is not first
    assert shared.last is other  # one at a time
    other.check(IDS[:3], 2)
    held = [state for batches in (*other.ends, *other.attention_ends, other.windows.starts) for state in batches]
    assert dense_stream_gib(model, structure, IDS[:3]) * 2**30 == sum(t.numel() * t.element_size() for t in held)
    for form, gib in (("local", 1.0), ("sequential", 1e-9)):
        assert SharedStream().of(model, structure, IDS, dataclasses.replace(config, form=form, shared_gib=gib)) is None


def test_fewer_tokens_than_channels_are_told_of() -> None:
    structure = trace_structure(tiny_llama())  # FFNs of 160 channels
    assert too_few_tokens(structure, 10, 16, ReconstructionConfig()) is None
    for windows, config in ((10, ReconstructionConfig(samples=9)), (9, ReconstructionConfig()), (9, ReconstructionConfig(samples=50))):
        said = too_few_tokens(structure, windows, 16, config)
        assert said is not None
        assert said.startswith("reconstruction: 144 tokens for projections of up to 160 channels")


def test_a_dense_stream_of_other_windows_is_refused() -> None:
    model = tiny_llama()
    structure, config = trace_structure(model), ReconstructionConfig()
    dense = record_dense_stream(model, structure, IDS, config)
    other = dataclasses.replace(config, batch_size=3)
    for ids, asked in ((IDS.flip(0), config), (IDS[:3], config), (IDS, other)):
        with pytest.raises(DataError, match="dense: expected the stream of these windows and batches, got another"):
            prune_and_reconstruct(model, structure, plan_for(structure), ids, asked, dense=dense)
    assert model.model.layers[0].mlp.down_proj.weight.shape[1] == 160


@pytest.mark.parametrize("form", ["sequential", "local"])
def test_a_single_candidate_is_the_ridge(form: Any) -> None:
    searched, fixed = tiny_llama(), tiny_llama()
    structure = trace_structure(fixed)
    plan = plan_for(structure)
    prune_and_reconstruct(searched, structure, plan, IDS, ReconstructionConfig(ridge=9.0, candidates=[0.03], form=form))
    prune_and_reconstruct(fixed, structure, plan, IDS, ReconstructionConfig(ridge=0.03, form=form))
    torch.testing.assert_close(searched.state_dict(), fixed.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["sequential", "local"])
def test_candidates_are_judged_on_held_out_windows(form: Any) -> None:
    """The first refitted projection, by hand: five windows fit, the last is held out, then all six fit."""
    dense, searched = tiny_llama(), tiny_llama()
    structure = trace_structure(dense)
    plan, candidates = plan_for(structure), [1e-4, 1e-2, 1.0, 1e2]
    whole, group = watch(dense, IDS), structure.group(0, "ffn")
    name = group.output.module
    prune_and_reconstruct(searched, structure, plan, IDS, ReconstructionConfig(candidates=candidates, form=form, batch_size=4))
    x, y = whole[f"{name}.in"][:, group.channels_of(plan.kept[group.name])], whole[f"{name}.out"]
    kept = dense.get_submodule(name).weight[:, group.channels_of(plan.kept[group.name])].detach()
    split = 5 * IDS.shape[1]
    errors = [float((x[split:] @ ridge(x[:split], y[:split], kept, c).T - y[split:]).square().sum()) for c in candidates]
    expected = ridge(x, y, kept, candidates[errors.index(min(errors))])
    torch.testing.assert_close(searched.get_submodule(name).weight.double(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("form", ["sequential", "local"])
def test_a_rotation_keeps_lengths_and_angles_and_helps(form: Any) -> None:
    dense, cut, refitted = tiny_llama(), tiny_llama(), tiny_llama()
    structure = trace_structure(dense)
    plan = plan_for(structure, keep=0.7)
    prune_model(cut, structure, plan)
    prune_and_reconstruct(refitted, structure, plan, IDS, ReconstructionConfig(constraint="rotation", form=form))
    for group in structure.groups:
        before, after = (m.get_submodule(group.output.module).weight for m in (cut, refitted))
        torch.testing.assert_close(after.T @ after, before.T @ before, rtol=1e-3, atol=1e-3)
    whole, pruned, now = (watch(model, IDS)["model.layers.2.out"] for model in (dense, cut, refitted))
    assert float((now - whole).square().mean()) < float((pruned - whole).square().mean())


@pytest.mark.parametrize("options", [{}, {"ridge": 0.5}, {"form": "local"}, {"form": "local", "ridge": 0.1}])
def test_memory_stays_below_the_formula(options: dict[str, Any]) -> None:
    model = tiny_llama(intermediate_size=640, hidden_size=64)
    structure = trace_structure(model)
    ids, config = random_windows(40, 32, seed=6).input_ids, ReconstructionConfig(batch_size=4, **options)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with torch.profiler.profile(profile_memory=True) as profile:
        prune_and_reconstruct(model, structure, plan_for(structure, keep=0.999), ids, config)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    predicted = reconstruction_gib(model, structure, 40, 32, config) * 2**30 - weights
    assert 0.5 * predicted < peak < 1.02 * predicted, (peak, predicted)


def test_a_7b_fits_into_24_gb() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig()).bfloat16()
    structure = trace_structure(model)
    for options, most in (({"ridge": 0.5}, 20.0), ({"form": "local", "ridge": 0.1}, 18.0), ({}, 21.0)):
        assert 13.0 < reconstruction_gib(model, structure, 512, 128, ReconstructionConfig(**options)) < most  # type: ignore[arg-type]


def test_another_residual_form_is_refused() -> None:
    model = tiny_llama()
    structure = trace_structure(model)
    model.model.layers[0].register_forward_hook(lambda module, arguments, output: 2.0 * output)
    with pytest.raises(ModelError, match="expected a layer's output to be its input plus attention plus FFN"):
        prune_and_reconstruct(model, structure, plan_for(structure), IDS, ReconstructionConfig())


def test_bad_input_is_refused_before_anything_is_cut() -> None:
    model = tiny_llama()
    structure = trace_structure(model)
    with pytest.raises(DataError, match="reconstruction: expected calibration windows, got none"):
        prune_and_reconstruct(model, structure, plan_for(structure), IDS[:0], ReconstructionConfig())
    other = trace_structure(tiny_llama(intermediate_size=96))
    with pytest.raises(PlanError, match=r"plan: expected units 160 in group '0.ffn' of this model, got 96"):
        prune_and_reconstruct(model, structure, plan_for(other), IDS, ReconstructionConfig())
    assert model.model.layers[0].mlp.down_proj.weight.shape[1] == 160


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, "reconstruction.ridge: expected a positive number, got 0.0"),
        ({"ridge": math.nan}, "reconstruction.ridge: expected a positive number, got nan"),
        ({"samples": 0}, "reconstruction: expected batch_size and samples above 0, got 8, 0"),
        ({"form": "global"}, "reconstruction.form: expected 'sequential' or 'local', got 'global'"),
        ({"constraint": "none"}, "reconstruction.constraint: expected 'ridge' or 'rotation', got 'none'"),
        ({"candidates": [0.1, -1.0]}, r"reconstruction.candidates: expected positive numbers, got \[0.1, -1.0\]"),
        ({"candidates": [0.1], "constraint": "rotation"}, "reconstruction.candidates: expected none with constraint 'rotation'"),
        ({"batch_size": 0}, "reconstruction: expected batch_size and samples above 0, got 0, None"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ReconstructionConfig(**options)
