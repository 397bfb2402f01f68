from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapruner.errors import ConfigurationError, ModelError, PlanError
from adapruner.export.folder import export_model
from adapruner.pruning.plan import read_plan

from .cases import CASES, UNEVEN, plan_for, slice_model, structure_by_hand, tiny_model


@pytest.fixture(autouse=True)
def modules_cache(tmp_path, monkeypatch):
    """Modelling files that transformers copies aside stay out of the home directory."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def reload(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@pytest.mark.parametrize(("model_type", "attention", "ffn", "changes", "class_name"), CASES)
def test_a_stranger_computes_the_same(pruned, tmp_path, model_type, attention, ffn, changes, class_name):
    case = pruned(model_type, attention, ffn, **changes)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert record.class_name == class_name
    assert record.stock is not class_name.startswith("Pruned")
    again = reload(tmp_path / "out", trust_remote_code=not record.stock)
    assert type(again).__name__ == class_name
    torch.testing.assert_close(case.logits(again), case.logits(), rtol=0, atol=1e-5)
    assert case.greedy(again) == case.greedy()
    assert case.greedy(again, use_cache=False) == case.greedy()


def test_configuration_is_carried_over(pruned, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 300.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 32
    case = pruned("llama", [3] * 3, [10] * 3, kv_heads=4, rope_parameters=rope, tie_word_embeddings=True, eos_token_id=[2, 5])
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "mistral"  # Llama refuses 3 heads of 8 in a width of 32
    assert config["sliding_window"] is None
    assert {key: config["rope_parameters"][key] for key in rope} == rope
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"], config["intermediate_size"]) == (3, 3, 8, 10)
    assert (config["rms_norm_eps"], config["tie_word_embeddings"], config["eos_token_id"], config["bos_token_id"]) == (
        1e-4,
        True,
        [2, 5],
        1,
    )
    again = reload(tmp_path / "out")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    torch.testing.assert_close(case.logits(again), case.logits(), rtol=0, atol=1e-5)


def test_untied_by_training_is_saved_untied(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3, tie_word_embeddings=True)
    case.model.lm_head.weight = torch.nn.Parameter(case.model.lm_head.weight.detach() * 1.5)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    torch.testing.assert_close(case.logits(reload(tmp_path / "out")), case.logits(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_irregular_layers_under_every_attention_and_cache(pruned, tmp_path, model_type):
    case = pruned(model_type, *UNEVEN, **({"sliding_window": 4} if model_type == "mistral" else {}))
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    mask = torch.ones_like(case.input_ids)
    mask[0, :3] = 0  # left padding: a layer without its mask would differ
    for start in ("sdpa", "eager"):
        again = reload(tmp_path / "out", trust_remote_code=True, attn_implementation=start)
        for implementation in ("eager", "sdpa"):
            again.set_attn_implementation(implementation)
            case.model.set_attn_implementation(implementation)  # so that what is left is not the kernels' rounding
            got, expected = (model(input_ids=case.input_ids, attention_mask=mask).logits[mask.bool()] for model in (again, case.model))
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert case.greedy(again, cache_implementation="static") == case.greedy()
    assert case.greedy(again, num_beams=2) == case.greedy(num_beams=2)
    assert [layer.self_attn.num_key_value_groups for layer in again.model.layers] == [2, 2, 2]
    assert len(again(input_ids=case.input_ids, output_hidden_states=True).hidden_states) == 4


def test_irregular_export_without_trust_fails_loudly(pruned, tmp_path):
    case = pruned("llama", *UNEVEN)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    with pytest.raises(RuntimeError, match="mismatch"):
        reload(tmp_path / "out", trust_remote_code=False)


def test_irregular_export_survives_saving_again(pruned, tmp_path):
    case = pruned("qwen3", *UNEVEN, tie_word_embeddings=True)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    reload(tmp_path / "out", trust_remote_code=True).save_pretrained(tmp_path / "again")
    torch.testing.assert_close(case.logits(reload(tmp_path / "again", trust_remote_code=True)), case.logits(), rtol=0, atol=1e-5)


def test_every_auto_class_with_added_biases_and_saved_again(pruned, tmp_path):
    import transformers

    case = pruned("llama", *UNEVEN, output_bias=True)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    with torch.no_grad():
        expected = case.model.model(case.input_ids)[0]
    for name in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        auto, again = getattr(transformers, name), tmp_path / name
        auto.from_pretrained(tmp_path / "out", trust_remote_code=True).save_pretrained(again)
        assert len(json.loads((again / "config.json").read_text())["auto_map"]) == 4
        model = auto.from_pretrained(again, trust_remote_code=True).eval()
        assert type(model).__name__.startswith("PrunedLlama")
        with torch.no_grad():
            torch.testing.assert_close(model.base_model(case.input_ids)[0], expected, rtol=0, atol=1e-5)


def test_after_our_own_tracing_and_surgery(tmp_path):
    tracing = pytest.importorskip("adapruner.models.tracing")
    surgery = pytest.importorskip("adapruner.pruning.surgery")
    model, oracle = tiny_model("llama", kv_heads=4), tiny_model("llama", kv_heads=4)
    structure = tracing.trace_structure(model)
    plan = plan_for(model, structure, [3, 3, 3], [9, 24, 11])  # surgery writes the 3 heads, which Llama refuses, into the configuration
    surgery.prune_model(model, structure, plan)
    slice_model(oracle, plan.kept)
    record = export_model(model, None, structure, plan, tmp_path / "out")
    assert not record.stock
    ids = torch.arange(3, 15)[None]
    torch.testing.assert_close(reload(tmp_path / "out", trust_remote_code=True)(ids).logits, oracle(ids).logits, rtol=0, atol=1e-5)


def test_what_lies_in_the_folder(pruned, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    case = pruned("mistral", *UNEVEN)
    case.model.generation_config.temperature = 0.5  # without do_sample, as some released models have it
    card = {"license": "mit", "perplexity": [{"set": "wikitext2", "dense": 5.25, "pruned": 6.5}], "speed-up": 1.25}
    record = export_model(case.model, tokenizer, case.structure, case.plan, tmp_path / "deep" / "out", card=card, max_shard_size="20KB")
    folder = tmp_path / "deep" / "out"
    assert record.path == folder
    assert record.files == sorted(path.name for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert len([name for name in record.files if name.endswith(".safetensors")]) > 1
    assert not [name for name in record.files if name.endswith((".bin", ".pt", ".pkl"))]
    assert AutoTokenizer.from_pretrained(folder)("the lazy dog")["input_ids"] == [3, 4, 5]
    settings = json.loads((folder / "generation_config.json").read_text())
    assert not settings.get("do_sample")  # greedy as before
    assert "temperature" not in settings
    assert "generation_config: temperature left out, which has no effect on a model that does not sample" in record.notes
    assert read_plan(folder / "plan.json") == case.plan
    text = (folder / "README.md").read_text()
    for part in (
        "base_model: tiny/base",
        "license: mit",
        case.plan.hash,
        "| wikitext2 | 5.25 | 6.5 |",
        "speed-up: 1.25",
        "seed: 11",
        '"of": "block"',
    ):
        assert part in text


def test_tokenizer_is_the_same_where_llama_goes_out_as_mistral(pruned, tmp_path):
    from transformers import AutoTokenizer, LlamaTokenizer

    words = ["<unk>", "<s>", "</s>", "▁", "▁the", "▁do", "g", "t", "h", "e", "d", "o", "▁t", "▁d"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "d"), ("▁d", "o")]
    vocabulary = {word: index for index, word in enumerate([*words, "▁th"])}
    llama = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    case = pruned("llama", [3] * 3, [10] * 3, kv_heads=4)
    record = export_model(case.model, llama, case.structure, case.plan, tmp_path / "out")
    assert record.class_name == "MistralForCausalLM"
    assert not [note for note in record.notes if note.startswith("tokenizer")]
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert llama("the dog")["input_ids"] == [1, 4, 5, 6]
    assert again("the dog")["input_ids"] == [1, 4, 5, 6]
    assert again.decode([1, 4, 5, 6]) == llama.decode([1, 4, 5, 6])


def test_a_tokenizer_that_would_be_read_as_another_is_noted(pruned, tokenizer, tmp_path):
    case = pruned("qwen2", *UNEVEN)  # transformers always reads Qwen2Tokenizer for this family
    record = export_model(case.model, tokenizer, case.structure, case.plan, tmp_path / "out")
    assert any("AutoTokenizer reads it as Qwen2Tokenizer" in note for note in record.notes)
    assert type(tokenizer).from_pretrained(tmp_path / "out")("the lazy dog")["input_ids"] == [3, 4, 5]


def test_modelling_file_needs_nothing_of_ours(pruned, tmp_path):
    case = pruned("llama", *UNEVEN)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    source = (tmp_path / "out" / "modeling_adapruner.py").read_text()
    imports = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"logging", "typing", "torch", "transformers"}


def test_card_does_not_tell_where_the_base_model_lay(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3)
    case.plan.model["name"] = str(tmp_path / "secret" / "llama")
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "secret" not in text
    assert "base_model:" not in text
    assert "Base model: llama." in text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_that_asked_for(pruned, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    case = pruned("llama", [1] * 3, [10] * 3)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out", dtype=dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in again.parameters()} == {getattr(torch, dtype)}
    assert {parameter.dtype for parameter in case.model.parameters()} == {torch.float32}
    assert torch.equal(again.lm_head.weight, case.model.lm_head.weight.to(getattr(torch, dtype)))


def test_weights_too_large_for_float16_are_refused(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3)
    case.model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"range of float16, got larger ones in lm_head\.weight; use bfloat16"):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_export_replaces_its_own_folder_as_a_whole(pruned, tmp_path):
    first, second = pruned("llama", *UNEVEN), pruned("llama", [1] * 3, [10] * 3)
    export_model(first.model, None, first.structure, first.plan, tmp_path / "out")
    record = export_model(second.model, None, second.structure, second.plan, tmp_path / "out")
    assert "modeling_adapruner.py" not in record.files
    assert record.files == sorted(path.name for path in (tmp_path / "out").iterdir())
    torch.testing.assert_close(second.logits(reload(tmp_path / "out")), second.logits(), rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _foreign_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")


def _foreign_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')


def _plain_file(folder: Path) -> None:
    folder.write_text("x")


@pytest.mark.parametrize("make", [_foreign_file, _foreign_model, _plain_file])
def test_foreign_places_are_refused_untouched(pruned, tmp_path, make):
    case = pruned("llama", [1] * 3, [10] * 3)
    make(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match=r"^folder: expected .*, got .*out.*; choose another"):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_git_repository_is_refused(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    (tmp_path / "out" / ".git").mkdir()
    with pytest.raises(ConfigurationError, match="got the git repository"):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out")


def test_a_failed_export_leaves_the_old_one(pruned, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    case = pruned("llama", [1] * 3, [10] * 3)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigurationError, match=r"folder: expected to write .*out, got disk full; make room there"):
        export_model(case.model, Broken(), case.structure, case.plan, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_wrong_arguments_are_refused_before_anything_is_written(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3)
    with pytest.raises(ConfigurationError, match="did you mean 'bfloat16'"):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out", dtype="bfloat")
    dense = tiny_model("llama")
    with pytest.raises(ModelError, match="prune it by this plan first"):
        export_model(dense, None, case.structure, case.plan, tmp_path / "out")
    other = tiny_model("llama", kv_heads=4)
    with pytest.raises(PlanError, match="the plan was made for 'tiny/base'"):
        export_model(other, None, structure_by_hand(other), case.plan, tmp_path / "out")
    with pytest.raises(PlanError, match=r"at least one unit to stay in group 1\.attention"):
        export_model(dense, None, case.structure, plan_for(dense, case.structure, [1, 0, 1], [9] * 3), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_unmerged_adapters_are_refused(pruned, tmp_path):
    case = pruned("llama", [1] * 3, [10] * 3)
    case.model.model.layers[0].mlp.down_proj.lora_A = torch.nn.Linear(10, 2)
    with pytest.raises(ModelError, match=r"lora_A.*merge adapters first"):
        export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
