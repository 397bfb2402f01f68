from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adapruner.anatomy.tracing import trace_anatomy
from adapruner.anatomy.units import ModelAnatomy
from adapruner.errors import ConfigurationError, DataError, ModelError, PlanError
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.surgery import prune_model, restored
from adapruner.recovery.reconstruction import ReconstructionConfig, prune_and_reconstruct
from tests.tiny import random_windows, tiny_llama

IDS = random_windows(6, 24, seed=5).input_ids
CASES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "every head its own": {"num_key_value_heads": 4},
    "biased": {"attention_bias": True, "mlp_bias": True},
}


def plan_for(anatomy: ModelAnatomy, keep: float = 0.5, seed: int = 3) -> PruningPlan:
    """Random units; the first layer's attention stays whole."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in anatomy.groups:
        count = group.units if group.name == "0.attention" or keep == 1 else max(1, int(group.units * keep))
        kept[group.name] = sorted(torch.randperm(group.units, generator=generator)[:count].tolist())
    return PruningPlan(
        model={"name": "tiny", "model_type": "llama", "fingerprint": "f00d"},
        kept=kept,
        units={g.name: g.units for g in anatomy.groups},
        parameters={"dense": 2, "pruned": 1, "block_dense": 2, "block_pruned": 1},
        budget={"pruned_fraction": 0.5, "of": "block"},
    )


def watch(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """``NAME.in`` and ``NAME.out`` of every decoder layer, o_proj and down_proj, ``[tokens, width]`` float64."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")) or name.split(".")[-1].isdigit():

            def record(_: Any, arguments: Any, keywords: Any, output: Any, name: str = name) -> None:
                seen[f"{name}.in"] = (arguments[0] if arguments else keywords["hidden_states"]).double().flatten(0, 1)
                seen[f"{name}.out"] = (output[0] if isinstance(output, tuple) else output).double().flatten(0, 1)

            handles.append(module.register_forward_hook(record, with_kwargs=True))
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def ridge(inputs: Tensor, targets: Tensor, kept: Tensor, strength: float) -> Tensor:
    """min ||X W' - Y||^2 + lambda ||W' - W||^2 as one least-squares problem, with lambda relative to the mean of diag X'X."""
    scale = math.sqrt(strength * float(inputs.square().sum(0).mean()))
    rows = torch.cat([inputs, scale * torch.eye(inputs.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(rows, torch.cat([targets, scale * kept.double().T])).solution.T


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_refit_is_the_least_squares_solution(case: str, weighted: bool) -> None:
    dense = tiny_llama(**CASES[case])
    anatomy = trace_anatomy(dense)
    plan = plan_for(anatomy)
    cut, refitted = copy.deepcopy(dense), copy.deepcopy(dense)
    prune_model(cut, anatomy, plan)
    weights = torch.tensor([1.0, 4.0, 0.0, 2.0, 1.0, 1.0]) if weighted else None
    layers: list[int] = []
    # Batches of 4 and 2: what is recorded for one size must not serve the other.
    config = ReconstructionConfig(ridge=0.03, batch_size=4)
    prune_and_reconstruct(refitted, anatomy, plan, IDS, config, sample_weights=weights, progress=layers.append)
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
            target = ends[name] - starts[name] - (0 if linear.bias is None else linear.bias.double())
            expected = ridge(root * now[f"{name}.in"], root * target, kept, 0.03)
            torch.testing.assert_close(linear.weight.double(), expected, rtol=2e-3, atol=2e-4)
            if linear.bias is not None:
                assert torch.equal(linear.bias, cut.get_submodule(name).bias)
    assert not torch.allclose(refitted.model.layers[1].mlp.down_proj.weight, cut.model.layers[1].mlp.down_proj.weight, atol=0.01)


def test_nothing_removed_changes_no_bit() -> None:
    model = tiny_llama(attention_bias=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    anatomy = trace_anatomy(model)
    prune_and_reconstruct(model, anatomy, plan_for(anatomy, keep=1), IDS, ReconstructionConfig())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_huge_ridge_leaves_the_kept_weights() -> None:
    cut, refitted = tiny_llama(), tiny_llama()
    anatomy = trace_anatomy(cut)
    plan = plan_for(anatomy)
    prune_model(cut, anatomy, plan)
    prune_and_reconstruct(refitted, anatomy, plan, IDS, ReconstructionConfig(ridge=1e9))
    for name, value in refitted.state_dict().items():
        torch.testing.assert_close(value, cut.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_output_is_nearer_to_the_dense_one(case: str) -> None:
    dense, cut, refitted = (tiny_llama(**CASES[case]) for _ in range(3))
    anatomy = trace_anatomy(dense)
    plan = plan_for(anatomy, keep=0.7)
    prune_model(cut, anatomy, plan)
    prune_and_reconstruct(refitted, anatomy, plan, IDS, ReconstructionConfig())
    whole, pruned, now = (watch(model, IDS) for model in (dense, cut, refitted))
    errors = [
        [float((seen[f"model.layers.{i}.out"] - whole[f"model.layers.{i}.out"]).square().mean()) for i in range(3)]
        for seen in (pruned, now)
    ]
    assert all(after < 0.95 * before for before, after in zip(*errors, strict=True)), errors


def test_restored_gives_the_dense_model_back() -> None:
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    anatomy = trace_anatomy(model)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    with restored(model, anatomy):
        prune_and_reconstruct(model, anatomy, plan_for(anatomy), IDS, ReconstructionConfig())
        assert model.model.layers[1].mlp.down_proj.weight.shape[1] == 80
    assert [id(p) for p in model.parameters()] == identities
    for name, value in model.state_dict().items():
        assert torch.equal(value, dense[name]), name


def test_half_precision_and_training_mode_stay() -> None:
    model = tiny_llama().bfloat16().train()
    anatomy = trace_anatomy(model)
    prune_and_reconstruct(model, anatomy, plan_for(anatomy), IDS, ReconstructionConfig(samples=3))
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_samples_are_spread_over_the_pool() -> None:
    """Windows 0, 2 and 5 of six, and their weights, not the first three."""
    chosen, spread = tiny_llama(), tiny_llama()
    anatomy = trace_anatomy(chosen)
    plan, weights = plan_for(anatomy), torch.tensor([1.0, 9.0, 3.0, 9.0, 9.0, 2.0])
    picks = torch.tensor([0, 2, 5])
    prune_and_reconstruct(spread, anatomy, plan, IDS, ReconstructionConfig(samples=3), sample_weights=weights)
    prune_and_reconstruct(chosen, anatomy, plan, IDS[picks], ReconstructionConfig(), sample_weights=weights[picks])
    torch.testing.assert_close(spread.state_dict(), chosen.state_dict())


def test_another_residual_form_is_refused() -> None:
    model = tiny_llama()
    anatomy = trace_anatomy(model)
    model.model.layers[0].register_forward_hook(lambda module, arguments, output: 2.0 * output)
    with pytest.raises(ModelError, match="expected a layer's output to be its input plus attention plus FFN"):
        prune_and_reconstruct(model, anatomy, plan_for(anatomy), IDS, ReconstructionConfig())


def test_bad_input_is_refused_before_anything_is_cut() -> None:
    model = tiny_llama()
    anatomy = trace_anatomy(model)
    with pytest.raises(DataError, match="reconstruction: expected calibration windows, got none"):
        prune_and_reconstruct(model, anatomy, plan_for(anatomy), IDS[:0], ReconstructionConfig())
    other = trace_anatomy(tiny_llama(intermediate_size=96))
    with pytest.raises(PlanError, match=r"plan: expected units 160 in group '0.ffn' of this model, got 96"):
        prune_and_reconstruct(model, anatomy, plan_for(other), IDS, ReconstructionConfig())
    assert model.model.layers[0].mlp.down_proj.weight.shape[1] == 160


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, "reconstruction.ridge: expected a positive number, got 0.0"),
        ({"ridge": math.nan}, "reconstruction.ridge: expected a positive number, got nan"),
        ({"samples": 0}, "reconstruction: expected batch_size and samples above 0, got 8, 0"),
        ({"batch_size": 0}, "reconstruction: expected batch_size and samples above 0, got 0, None"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ReconstructionConfig(**options)
