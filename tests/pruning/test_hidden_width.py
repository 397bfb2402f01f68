"""A narrower residual stream: the tensors are those a slow reading of names slices, and the maths is that of zeroed channels."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapruner.errors import ConfigurationError, DataError, ModelError, PlanError
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.depth_and_width import DepthWidthCut, apply_depth_and_width, lift_plan
from adapruner.pruning.hidden_width import FAMILIES, choose_hidden, find_sides, hidden_scores, remove_hidden, without_hidden
from adapruner.pruning.masking import masked
from adapruner.pruning.surgery import prune_model, pruned
from tests.oracles.surgery import assert_same, plan_of, random_plan, snapshot

KEPT = [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15, 17, 18, 19, 20, 22, 23, 24, 26, 28, 29, 31]

#: Names, written by hand -> which side of the tensor is the stream.
_COLUMNS = re.compile(r"(embed_tokens|lm_head|[qkv]_proj|gate_proj|up_proj)\.weight$")
_ROWS = re.compile(r"(o_proj|down_proj)\.(weight|bias)$")
_NORMS = re.compile(r"(layernorm|model\.norm)\.weight$")


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model(input_ids=ids).logits


def sliced(model: Any, kept: list[int]) -> Any:
    """A new model of the stock class whose tensors are slices, one row or column at a time."""
    config = copy.deepcopy(model.config)
    config.head_dim = model.model.layers[0].self_attn.head_dim
    config.hidden_size = len(kept)
    narrow = type(model)(config).to(next(model.parameters()).dtype).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        if _COLUMNS.search(name):
            tensor = torch.stack([tensor[:, channel] for channel in kept], dim=1)
        elif _ROWS.search(name):
            tensor = torch.stack([tensor[channel] for channel in kept])
        elif _NORMS.search(name):
            tensor = torch.stack([tensor[channel] * (model.config.hidden_size / len(kept)) ** 0.5 for channel in kept])
        state[name] = tensor
    narrow.load_state_dict(state)
    return narrow


def zeroed(model: Any, kept: list[int]) -> Any:
    """The model at its full width, in which nothing writes to the other channels of the stream."""
    model = copy.deepcopy(model)
    gone = [channel for channel in range(model.config.hidden_size) if channel not in kept]
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                tensor[:, gone] = 0.0
            elif _ROWS.search(name):
                tensor[gone] = 0.0
    return model


def test_narrowed_is_sliced_by_hand(tiny_model: Any, family: str) -> None:
    model = tiny_model(family).double()
    oracle, dense, before = sliced(model, KEPT), logits(model), snapshot(model)
    with without_hidden(model, KEPT):
        torch.testing.assert_close(logits(model), logits(oracle), rtol=0, atol=1e-12)
    assert_same(before, snapshot(model))
    assert torch.equal(logits(model), dense)
    remove_hidden(model, KEPT)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in oracle.named_parameters()}
    torch.testing.assert_close(logits(model), logits(oracle), rtol=0, atol=1e-12)
    assert model.config.hidden_size == len(KEPT)
    assert all(p.is_contiguous() for p in model.parameters())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    assert model.model.embed_tokens.embedding_dim == model.model.layers[0].hidden_size == len(KEPT)


def test_norms_are_those_of_a_stream_with_zeros(tiny_model: Any, family: str) -> None:
    """The factor sqrt(all / kept) makes up for the mean over fewer channels, up to the norms' epsilon and their float32."""
    model = tiny_model(family, rms_norm_eps=1e-12).double()
    expected = logits(zeroed(model, KEPT))
    remove_hidden(model, KEPT)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tiny_model: Any, tmp_path: Any, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model("qwen3", tie_word_embeddings=tied)
    model.model.embed_tokens.weight.requires_grad_(False)
    remove_hidden(model, KEPT)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert not model.model.embed_tokens.weight.requires_grad
    assert model.model.layers[0].mlp.up_proj.weight.requires_grad
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1.0)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) is tied


@pytest.mark.parametrize("family", ["llama_gqa_2", "mistral", "qwen2", "qwen3"])
def test_layers_channels_and_units_in_one_plan_load_in_the_stock_class(tiny_model: Any, tmp_path: Any, family: str) -> None:
    """Heads, channels, a layer and hidden channels; uniform, so that the configuration says it all."""
    from transformers import AutoModelForCausalLM

    model = tiny_model(family)
    structure, cut = trace_structure(model), DepthWidthCut((1,), tuple(KEPT))
    twin = copy.deepcopy(model)
    apply_depth_and_width(twin, cut)
    within = trace_structure(twin)
    kept = {g.name: [1] if g.kind == "attention" else list(range(2, 18)) for g in within.groups}
    inner = plan_of(within, kept)
    plan = lift_plan(inner, structure, cut, {"name": "tiny"})
    before, dense = snapshot(model), logits(model)
    prune_model(twin, within, inner)
    with pruned(model, structure, plan):
        assert torch.equal(logits(model), logits(twin))
    assert_same(before, snapshot(model))
    assert torch.equal(logits(model), dense)
    prune_model(model, structure, plan)
    assert torch.equal(logits(model), logits(twin))
    assert count_parameters(model) == plan.parameters["pruned"]
    assert model.config.to_dict() == twin.config.to_dict()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    ids = torch.arange(3, 12)[None]
    assert model.generate(ids, use_cache=True, **options).tolist() == model.generate(ids, use_cache=False, **options).tolist()


def test_irregular_units_and_hidden_channels(tiny_model: Any) -> None:
    """After units are cut differently in each layer, and with biases that the plan adds, the stream is still cut whole."""
    model = tiny_model("llama_gqa_4", rms_norm_eps=1e-12).double()
    structure = trace_structure(model)
    plan = replace(random_plan(structure, 2), output_bias=True, kept_hidden=KEPT)
    expected = zeroed(model, KEPT)
    prune_model(expected, structure, replace(plan, kept_hidden=None))
    prune_model(model, structure, plan)
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=1e-5)
    assert model.model.layers[0].mlp.down_proj.bias.shape == (len(KEPT),)
    assert (model.config.num_attention_heads, model.config.hidden_size) == (8, len(KEPT))


def test_scores_are_mean_absolute_values_behind_norms(tiny_model: Any, token_windows: Any, family: str) -> None:
    """Against one token at a time, over every norm but those of heads; padding does not count."""
    model, windows = tiny_model(family), token_windows(padded=True)
    norms = [m for layer in model.model.layers for m in (layer.input_layernorm, layer.post_attention_layernorm)] + [model.model.norm]
    total, tokens = torch.zeros(32, dtype=torch.float64), 0
    for row in range(len(windows.input_ids)):
        seen: list[Tensor] = []
        handles = [norm.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output)) for norm in norms]
        with torch.no_grad():
            model(windows.input_ids[row : row + 1], attention_mask=windows.attention_mask[row : row + 1])
        for handle in handles:
            handle.remove()
        for position in windows.attention_mask[row].nonzero().flatten().tolist():
            tokens += 1
            for output in seen:
                total += output[0, position].double().abs()
    before = snapshot(model)
    torch.testing.assert_close(hidden_scores(model, windows, batch_size=2), total / tokens, rtol=1e-5, atol=1e-6)
    assert_same(before, snapshot(model))


def test_choice_of_channels() -> None:
    scores = torch.tensor([5.0, 1.0, 1.0, 3.0, 2.0, 4.0])
    assert choose_hidden(scores, 0.0) == list(range(6))
    assert choose_hidden(scores, 0.5) == [0, 3, 5]
    assert choose_hidden(scores, 0.17) == [0, 1, 3, 4, 5]  # of equals the earlier one stays
    assert choose_hidden(scores, 0.5, multiple=2) == [0, 3, 4, 5]
    assert choose_hidden(scores, 0.95, multiple=4) == [0, 3, 4, 5]  # never none
    with pytest.raises(ConfigurationError, match=r"hidden_fraction: expected a fraction in \[0, 1\), got 1.0"):
        choose_hidden(scores, 1.0)


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [0, 32], [-1, 3]])
def test_kept_channels_that_do_not_fit(tiny_model: Any, kept: list[int]) -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    with pytest.raises(PlanError, match=r"kept_hidden: expected sorted indices below the hidden size 32, got others"):
        remove_hidden(model, kept)
    assert_same(before, snapshot(model))


def test_other_families_and_changed_models_are_refused(tiny_model: Any, token_windows: Any) -> None:
    from tests.models.families.table import ROWS, build

    for row in ROWS:
        if row.model_type not in FAMILIES:
            with pytest.raises(ModelError, match=rf"model: expected one of llama, .* to remove hidden channels, got {row.model_type};"):
                remove_hidden(build(row), KEPT)
    model = tiny_model("llama")
    model.model.layers[1].extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelError, match=r"face the stream of 32 channels in a known way, got model\.layers\.1\.extra of shape \(3,\)"):
        find_sides(model)
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj = nn.Linear(30, 24, bias=False)
    structure = trace_structure(tiny_model("llama"))
    plan = lift_plan(plan_of(structure, {}), structure, DepthWidthCut((), tuple(KEPT)), {})
    with pytest.raises(ModelError, match=r"got model\.layers\.1\.mlp\.up_proj\.weight of shape \(24, 30\); remove hidden channels before"):
        prune_model(model, structure, plan)
    with pytest.raises(PlanError, match=r"expected all hidden channels to stay in a masked model"), masked(model, structure, plan):
        pytest.fail("the block must not run")
    windows = token_windows()
    windows.attention_mask.zero_()
    with pytest.raises(DataError, match=r"windows: expected at least one calibration token"):
        hidden_scores(tiny_model("llama"), windows)
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"expected finite activations on the calibration windows"):
        hidden_scores(model, token_windows())
