"""Exports of plans that add biases to the output projections (``PruningPlan.output_bias``)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from adapruner.errors import ModelError
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.export.verification import verify_export
from adapruner.files.digests import write_sums
from adapruner.models.tracing import trace_structure
from adapruner.pruning.masking import masked
from adapruner.pruning.surgery import prune_model

from .cases import BIASED_CASES, UNEVEN, plan_for, tiny_model
from .test_folder import modules_cache, reload  # noqa: F401  the fixture applies here too

EVEN = ([1, 1, 1], [10, 10, 10])


@pytest.mark.parametrize(("model_type", "attention", "ffn", "changes", "class_name"), BIASED_CASES)
def test_a_stranger_computes_the_same(pruned, tmp_path, model_type, attention, ffn, changes, class_name):
    case = pruned(model_type, attention, ffn, output_bias=True, **changes)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert record.class_name == class_name
    assert record.stock is not class_name.startswith("Pruned")
    for again in (reload(tmp_path / "out", trust_remote_code=not record.stock), load(tmp_path / "out")):
        assert type(again).__name__ == class_name
        torch.testing.assert_close(case.logits(again), case.logits(), rtol=0, atol=1e-5)
        assert case.greedy(again) == case.greedy()
    assert any("output projections have biases" in note for note in record.notes)
    assert "output projections have biases" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("model_type", "attention", "ffn", "changes"),
    [("llama", *EVEN, {}), ("llama", *UNEVEN, {}), ("mistral", *EVEN, {}), ("qwen2", *UNEVEN, {}), ("qwen3", *UNEVEN, {})],
)
def test_a_new_process_computes_the_same(pruned, tmp_path, model_type, attention, ffn, changes):
    case = pruned(model_type, attention, ffn, output_bias=True, **changes)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert verify_export(record.path, case.model, case.input_ids).difference < 1e-5


def test_the_stock_class_gets_zeros_where_the_base_has_no_bias(pruned, tmp_path):
    case = pruned("llama", *EVEN, output_bias=True)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)
    assert "output_bias" not in config
    assert any("attention_bias and mlp_bias switched on" in note for note in record.notes)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith("proj.bias")}
    assert len(biases) == 7 * 3
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for name, bias in biases.items():
        output = "o_proj" in name or "down_proj" in name
        assert bool(bias.any()) is output
        assert len(bias) == len(tensors[name.replace(".bias", ".weight")])
    own = dict(case.model.named_parameters())
    assert len([name for name in own if name.endswith("proj.bias")]) == 6  # the model itself is left as it was
    assert case.model.config.attention_bias is False


def test_a_base_with_biases_keeps_its_own(pruned, tmp_path):
    case = pruned("llama", *EVEN, output_bias=True, attention_bias=True, mlp_bias=True)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in case.model.state_dict().items())
    assert not any("switched on" in note for note in record.notes)


@pytest.mark.parametrize(("model_type", "widths"), [("mistral", EVEN), ("llama", UNEVEN)])
def test_the_modelling_file_adds_only_what_the_configuration_says(pruned, tmp_path, model_type, widths):
    case = pruned(model_type, *widths, output_bias=True)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    added = [name for name in config["pruned_shapes"] if name.endswith(("o_proj.bias", "down_proj.bias"))]
    assert len(added) == 6
    reason = "the stock class of mistral has no biases there" if model_type == "mistral" else "layers have widths of their own"
    assert any(note.startswith(f"{reason}: loading needs trust_remote_code=True") for note in record.notes)
    again = load(tmp_path / "out")
    assert set(again.state_dict()) == set(case.model.state_dict())
    again.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(case.logits(reload(tmp_path / "again", trust_remote_code=True)), case.logits(), rtol=0, atol=1e-5)
    for name in added:
        del config["pruned_shapes"][name]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    write_sums(tmp_path / "out")
    with pytest.raises(ModelError, match=r"got 6 unexpected_keys, first model\.layers\.0\.mlp\.down_proj\.bias"):
        load(tmp_path / "out")


def test_a_loaded_export_is_exported_again(pruned, tmp_path):
    case = pruned("qwen3", *UNEVEN, output_bias=True)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    export_model(load(tmp_path / "out"), None, case.structure, case.plan, tmp_path / "again")
    torch.testing.assert_close(case.logits(load(tmp_path / "again")), case.logits(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "output", "message"),
    [
        ("llama", "mlp.down_proj", r"expected a bias in model\.layers\.1\.mlp\.down_proj, got none; prune it by this plan first"),
        ("qwen2", "self_attn.o_proj", r"expected a bias in model\.layers\.1\.self_attn\.o_proj, got none"),
    ],
)
def test_a_missing_bias_is_refused(pruned, tmp_path, model_type, output, message):
    case = pruned(model_type, *EVEN, output_bias=True)
    case.model.get_submodule(f"model.layers.1.{output}").bias = None
    with pytest.raises(ModelError, match=message):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bias_of_the_family_is_refused(pruned, tmp_path):
    case = pruned("llama", *EVEN, mlp_bias=True)
    case.model.model.layers[1].mlp.down_proj.bias = None
    with pytest.raises(ModelError, match=r"expected a bias in model\.layers\.1\.mlp\.down_proj, got none"):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_an_unexpected_bias_is_refused(pruned, tmp_path, model_type):
    case = pruned(model_type, *EVEN, output_bias=True)
    plan = replace(case.plan, output_bias=False)
    with pytest.raises(ModelError, match=r"expected no bias in model\.layers\.0\.self_attn\.o_proj, got one; prune it by this plan first"):
        export_model(case.model, None, case.structure, plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_bias_of_another_size_is_refused(pruned, tmp_path):
    case = pruned("llama", *EVEN, output_bias=True)
    case.model.model.layers[0].mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(31))
    with pytest.raises(ModelError, match=r"expected the tensors of LlamaForCausalLM, got others .*down_proj\.bias"):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("widths", [EVEN, UNEVEN], ids=["uniform", "irregular"])
def test_after_our_own_tracing_surgery_and_compensation(tmp_path, model_type, widths):
    model = tiny_model(model_type)
    structure = trace_structure(model)
    plan = replace(plan_for(model, structure, *widths), output_bias=True)
    torch.manual_seed(2)
    means = {group.name: torch.randn(group.channels) for group in structure.groups}
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        with masked(model, structure, plan, means):
            expected = model(ids).logits
        prune_model(model, structure, plan, means)
        export_model(model, None, structure, plan, tmp_path / "out")
        torch.testing.assert_close(load(tmp_path / "out")(ids).logits, expected, rtol=1e-4, atol=1e-4)
