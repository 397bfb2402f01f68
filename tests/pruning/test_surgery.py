"""Golden tests: zeroing a unit, cutting for a while, and cutting for good give the same model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapruner.errors import ModelError, PlanError
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.masking import channel_mask, masked
from adapruner.pruning.plan import read_plan
from adapruner.pruning.surgery import prune_model, pruned, restored
from adapruner.pruning.surgery_in_turn import copied_bytes, pruned_in_turn
from tests.oracles.surgery import random_plan


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("seed", [0, 1])
def test_masked_pruned_and_cut_models_agree(tiny_model: Any, token_windows: Any, family: str, seed: int) -> None:
    model = tiny_model(family).double()
    structure, ids = trace_structure(model), token_windows().input_ids
    plan = random_plan(structure, seed)
    before, config = state(model), model.config.to_dict()
    with torch.no_grad():
        dense = model(ids).logits
        with masked(model, structure, plan):
            expected = model(ids).logits
        with pruned(model, structure, plan):
            for_a_while = model(ids).logits
        assert equal_states(before, state(model))
        assert config == model.config.to_dict()
        assert torch.equal(model(ids).logits, dense)
        prune_model(model, structure, plan)
        for_good = model(ids).logits
    assert float((expected - dense).abs().max()) > 1e-3  # the plan does something
    assert float((for_a_while - expected).abs().max()) < 1e-12
    assert float((for_good - expected).abs().max()) < 1e-12
    assert count_parameters(model) == plan.parameters["pruned"]


def test_plan_read_back_from_json_prunes_to_the_same_model(tiny_model: Any, family: str, tmp_path: Any) -> None:
    model = tiny_model(family)
    twin, structure = copy.deepcopy(model), trace_structure(model)
    plan = random_plan(structure, 0)
    plan.save(tmp_path / "plan.json")
    prune_model(model, structure, plan)
    prune_model(twin, structure, read_plan(tmp_path / "plan.json"))
    assert equal_states(state(model), state(twin))


def test_uniform_widths_go_into_the_configuration(tiny_model: Any) -> None:
    model = tiny_model("llama_gqa_2")
    structure = trace_structure(model)
    plan = random_plan(structure, 0)
    kept = {g.name: [0] if g.kind == "attention" else list(range(10)) for g in structure.groups}
    prune_model(model, structure, replace(plan, kept=kept))
    config = model.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim, config.intermediate_size) == (1, 2, 8, 10)


def test_whole_model_comes_back_when_the_block_fails(tiny_model: Any) -> None:
    model = tiny_model("llama_gqa_2")
    structure, before = trace_structure(model), state(model)
    with pytest.raises(RuntimeError, match="in the block"), pruned(model, structure, random_plan(structure, 0)):
        raise RuntimeError("in the block")
    assert equal_states(before, state(model))
    with restored(model, structure):
        prune_model(model, structure, random_plan(structure, 3))
    assert equal_states(before, state(model))


def test_new_parameters_require_gradients_as_the_old_ones(tiny_model: Any) -> None:
    model = tiny_model("llama")
    structure = trace_structure(model)
    frozen = "model.layers.0.self_attn.q_proj"
    model.get_submodule(frozen).weight.requires_grad_(False)
    prune_model(model, structure, random_plan(structure, 0))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not flags.pop(f"{frozen}.weight")
    assert all(flags.values())


def test_channel_mask_marks_whole_units(tiny_model: Any) -> None:
    group = trace_structure(tiny_model("llama_gqa_2")).group(0, "attention")
    assert channel_mask(group, [1]).tolist() == [0.0] * 16 + [1.0] * 16


def test_refused_plans_change_nothing(tiny_model: Any) -> None:
    model = tiny_model("llama")
    structure, before = trace_structure(model), state(model)
    plan = random_plan(structure, 0)
    with pytest.raises(PlanError, match=r"at least one unit to stay in group 1\.ffn, got none; prune less"):
        prune_model(model, structure, replace(plan, kept={**plan.kept, "1.ffn": []}))
    other = trace_structure(tiny_model("llama_gqa_2"))
    with pytest.raises(PlanError, match=r"expected units 4 in group '0\.attention' of this model, got 2"):
        prune_model(model, structure, random_plan(other, 0))
    assert equal_states(before, state(model))


def test_pruned_twice_is_refused(tiny_model: Any) -> None:
    model = tiny_model("llama")
    structure = trace_structure(model)
    plan = random_plan(structure, 1)
    prune_model(model, structure, plan)
    with pytest.raises(ModelError, match="it is already pruned"):
        prune_model(model, structure, plan)


def test_a_model_cut_in_turn_answers_as_one_that_is_cut(tiny_model: Any, token_windows: Any, family: str) -> None:
    model, ids = tiny_model(family), token_windows().input_ids
    structure = trace_structure(model)
    plan, before = random_plan(structure, 0), state(model)
    with torch.no_grad():
        with pruned(model, structure, plan):
            expected = model(ids).logits
        with pruned_in_turn(model, structure, plan):
            assert torch.equal(model(ids).logits, expected)
            assert equal_states(before, state(model))
            assert torch.equal(model(ids).logits, expected)  # twice, since a layer is cut at every call
        assert not torch.equal(model(ids).logits, expected)


def test_one_layer_is_cut_at_a_time(tiny_model: Any, token_windows: Any) -> None:
    model, widths = tiny_model("llama_gqa_2"), []
    structure = trace_structure(model)
    plan = random_plan(structure, 0)
    layers = model.model.layers
    for layer in layers:
        layer.mlp.register_forward_hook(lambda *_: widths.append([other.mlp.down_proj.in_features for other in layers]))
    with torch.no_grad(), pruned_in_turn(model, structure, plan):
        model(token_windows().input_ids)
    kept = [len(plan.kept[f"{index}.ffn"]) for index in range(3)]
    assert widths == [[kept[0], 24, 24], [24, kept[1], 24], [24, 24, kept[2]]]
    with pruned(model, structure, plan):
        names = {f"{module}.weight" for group in structure.groups if not plan.keeps_all(group) for module, _ in group.tensors}
        held = sum(p.nbytes for name, p in model.named_parameters() if name in names)
    assert copied_bytes(model, structure, plan) == held


def test_a_layer_that_fails_is_whole_and_can_be_called_again(tiny_model: Any, token_windows: Any) -> None:
    model, ids = tiny_model("llama_gqa_2"), token_windows().input_ids
    structure, before = trace_structure(model), state(model)
    plan = random_plan(structure, 0)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    with torch.no_grad(), pruned_in_turn(model, structure, plan):
        expected = model(ids).logits
        handle = model.model.layers[1].mlp.register_forward_hook(fail)
        with pytest.raises(torch.OutOfMemoryError, match=r"^$"):
            model(ids)
        handle.remove()
        assert torch.equal(model(ids).logits, expected)
    assert equal_states(before, state(model))
