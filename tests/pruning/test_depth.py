"""Whole layers: a model without them is the model that skips them, in every family, with its cache and its configuration."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from adapruner.errors import ConfigurationError, DataError, ModelError, PlanError
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.depth import choose_layers, remove_layers, skipped_layers, without_layers
from adapruner.pruning.depth_and_width import DepthWidthCut, lift_plan, restrict_plan
from adapruner.pruning.layer_scores.block_influence import BlockInfluence
from adapruner.pruning.masking import masked
from adapruner.pruning.surgery import prune_model, pruned
from tests.models.families.table import ROWS, Row, build
from tests.oracles.surgery import assert_same, plan_of, random_plan, snapshot


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_removed_is_skipped_in_every_family(row: Row) -> None:
    """In float64, exactly; with the cache as without; and a model built from the configuration takes the tensors."""
    model = build(row, num_hidden_layers=4).double()
    dense, before, place = logits(model), snapshot(model), layer_places(model)
    with skipped_layers(model, [0, 2]):
        expected = logits(model)
    with without_layers(model, [0, 2]):
        assert torch.equal(logits(model), expected)
    assert_same(before, snapshot(model))
    assert layer_places(model) == place
    assert torch.equal(logits(model), dense)
    remove_layers(model, [0, 2])
    assert torch.equal(logits(model), expected)
    assert not torch.equal(expected, dense)

    ids = torch.arange(3, 12)[None]
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    with_cache, without = (model.generate(ids, use_cache=cache, **options).tolist() for cache in (True, False))
    assert with_cache == without
    again = type(model)(copy.deepcopy(model.config)).double().eval()
    assert layer_places(again) == layer_places(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), expected)


def layer_places(model: Any) -> dict[str, int]:
    return {name: module.layer_idx for name, module in model.named_modules() if hasattr(module, "layer_idx")}


@pytest.mark.parametrize("family", ["llama_gqa_2", "qwen3"])
def test_units_and_layers_go_together(tiny_model: Any, family: str) -> None:
    """Irregular widths and a missing layer: masked, cut for a while and cut for good are the same, and so is the count."""
    model = tiny_model(family).double()
    structure = trace_structure(model)
    with without_layers(model, [1]):
        within = trace_structure(model)
        plan = lift_plan(random_plan(within, 3), structure, DepthWidthCut((1,)), {"fingerprint": "f00d"})
    before = snapshot(model)
    with masked(model, structure, plan):
        expected = logits(model)
    with pruned(model, structure, plan):
        assert float((logits(model) - expected).abs().max()) < 1e-12
    assert_same(before, snapshot(model))
    twin = copy.deepcopy(model)
    prune_model(model, structure, plan)
    assert float((logits(model) - expected).abs().max()) < 1e-12
    assert count_parameters(model) == plan.parameters["pruned"]

    remove_layers(twin, [1])
    prune_model(twin, within, restrict_plan(plan, within))  # the other way round: the same tensors
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), model.state_dict().values(), strict=True))


def test_uniform_widths_of_what_stays_load_in_the_stock_class(tiny_model: Any, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model("qwen3")
    structure = trace_structure(model)
    kept = {f"{layer}.attention": [0] for layer in (0, 2)} | {f"{layer}.ffn": list(range(8)) for layer in (0, 2)}
    prune_model(
        model,
        structure,
        lift_plan(plan_of(trace_structure(tiny_model("qwen3", num_hidden_layers=2)), renamed(kept)), structure, DepthWidthCut((1,)), {}),
    )
    assert (model.config.num_hidden_layers, model.config.num_attention_heads, model.config.intermediate_size) == (2, 2, 8)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(model))


def renamed(kept: dict[str, list[int]]) -> dict[str, list[int]]:
    """Layers 0 and 2 of three as 0 and 1 of two."""
    return {name.replace("2.", "1."): units for name, units in kept.items()}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_influence_is_one_minus_the_mean_cosine(tiny_model: Any, token_windows: Any, family: str) -> None:
    """Against every hidden state, one token at a time; padding does not count."""
    model, windows = tiny_model(family), token_windows(padded=True)
    cosines: list[list[float]] = [[] for _ in range(3)]
    streams: dict[int, Tensor] = {}
    for row in range(len(windows.input_ids)):
        handles = [
            layer.register_forward_hook(lambda _, args, output, at=index: streams.update({at: args[0], at + 1: output}))
            for index, layer in enumerate(model.model.layers)
        ]
        with torch.no_grad():
            model(windows.input_ids[row : row + 1], attention_mask=windows.attention_mask[row : row + 1])
        for handle in handles:
            handle.remove()
        for position in windows.attention_mask[row].nonzero().flatten().tolist():
            for index in range(3):
                one, other = streams[index][0, position].double(), streams[index + 1][0, position].double()
                cosines[index].append(float(one @ other / one.norm() / other.norm()))
    expected = torch.tensor([1 - sum(values) / len(values) for values in cosines], dtype=torch.float64)
    done: list[int] = []
    before = snapshot(model)
    torch.testing.assert_close(BlockInfluence().score(model, windows, batch_size=2, progress=done.append), expected, rtol=0, atol=1e-6)
    assert done == [2, 4, 5]
    assert_same(before, snapshot(model))


def test_a_layer_that_does_nothing_is_the_first_to_go(tiny_model: Any, token_windows: Any) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    before, influence = logits(model), BlockInfluence().score(model, token_windows())
    assert float(influence[1]) == pytest.approx(0.0, abs=1e-6)
    assert choose_layers(influence, 1) == [1]
    remove_layers(model, choose_layers(influence, 1))
    assert torch.equal(logits(model), before)


def test_choice_of_layers() -> None:
    influence = torch.tensor([0.9, 0.1, 0.3, 0.1, 0.2])
    assert choose_layers(influence, 0) == []
    assert choose_layers(influence, 1) == [1]  # of equals the earlier one
    assert choose_layers(influence, 3) == [1, 3, 4]
    assert choose_layers(influence, 2, protected=[1, 4]) == [2, 3]
    with pytest.raises(ConfigurationError, match=r"remove_layers: expected at most 2 of 5 layers, 3 of them protected, got 3"):
        choose_layers(influence, 3, protected=[0, 1, 4])
    with pytest.raises(ConfigurationError, match=r"remove_layers: expected at most 4 of 5 layers, 0 of them protected, got 5"):
        choose_layers(influence, 5)


def test_what_cannot_be_done_is_refused_before_anything_is_touched(tiny_model: Any, token_windows: Any) -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    for removed in ([3], [-1], [0, 1, 2]):
        with pytest.raises(PlanError, match=r"removed_layers: expected some of 3 layers and not all, got \["):
            remove_layers(model, removed)
    structure = trace_structure(model)
    plan = lift_plan(plan_of(trace_structure(tiny_model("llama", num_hidden_layers=2)), {}), structure, DepthWidthCut((1,)), {})
    model.config.mlp_only_layers = [1]
    for cut in (lambda: remove_layers(model, [1]), lambda: prune_model(model, structure, plan)):
        with pytest.raises(
            ModelError, match=r"expected layers that do not depend on their place .* got mlp_only_layers in the configuration"
        ):
            cut()
    del model.config.mlp_only_layers
    assert_same(before, snapshot(model))
    windows = token_windows()
    windows.attention_mask.zero_()
    with pytest.raises(DataError, match=r"windows: expected at least one calibration token"):
        BlockInfluence().score(model, windows)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"expected finite hidden states on the calibration windows"):
        BlockInfluence().score(model, token_windows())
