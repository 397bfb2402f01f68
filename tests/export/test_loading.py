from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from adapruner import stages
from adapruner.errors import ModelError, PlanError
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.files.digests import write_sums
from adapruner.models.families import modeling_adapruner
from adapruner.pruning.plan import read_plan
from adapruner.recovery.training import RecoveryConfig

from .cases import UNEVEN, VOCABULARY

EVEN = ([1, 1, 1], [10, 10, 10])


@pytest.fixture(params=[EVEN, UNEVEN], ids=["stock", "irregular"])
def exported(request, pruned, tmp_path):
    case = pruned("llama", *request.param)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    return case, record


def test_loads_the_same_model(exported):
    case, record = exported
    again = load(record.path)
    assert type(again).__name__ == record.class_name
    assert not again.training
    assert torch.equal(case.logits(again), case.logits())
    assert case.greedy(again) == case.greedy()
    assert load(record.path, dtype="bfloat16").dtype == torch.bfloat16


READINGS = {
    "load": "import adapruner; adapruner.load(folder)",
    "tokenizer": "from adapruner.models.loading import load_tokenizer; load_tokenizer(folder)",
    "tokenizer of the data": (
        "from adapruner.data_module import PruningDataModule\n"
        "data = PruningDataModule.__new__(PruningDataModule)\n"
        "data.tokenizer_object, data.tokenizer_name = None, folder\n"
        "data._find_tokenizer()"
    ),
}


@pytest.mark.parametrize("reading", READINGS)
def test_nothing_is_said_of_widths_that_differ(reading, pruned, tokenizer, tmp_path):
    """In a fresh process: the library says it once in each, and hides it in this one."""
    case = pruned("llama", *UNEVEN)
    export_model(case.model, tokenizer, case.structure, case.plan, tmp_path / "out")
    script = f"import sys\nfolder = sys.argv[1]\n{READINGS[reading]}\nprint('read')"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["read"]
    assert "per-layer" not in done.stderr


def test_runs_no_code_from_the_folder(exported, tmp_path):
    case, record = exported
    (record.path / "modeling_adapruner.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = json.loads((record.path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_adapruner.PrunedLlamaForCausalLM", "AutoConfig": "modeling_adapruner.Config"}
    (record.path / "config.json").write_text(json.dumps(config))
    write_sums(record.path)  # whoever writes the rest writes them, too
    again = load(record.path)
    assert torch.equal(case.logits(again), case.logits())
    assert not (tmp_path / "ran").exists()
    assert type(again).__module__ == modeling_adapruner.__name__ or record.stock


def test_a_loaded_model_can_be_saved_for_strangers(exported, tmp_path):
    _, record = exported
    load(record.path).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == [record.class_name]
    assert (tmp_path / "again" / "modeling_adapruner.py").exists() is not record.stock
    assert ("auto_map" in config) is not record.stock


def test_a_loaded_model_is_trained_and_exported_again(exported, tmp_path):
    case, record = exported
    again = load(record.path)
    stages.recover(again, texts=torch.randint(3, VOCABULARY, (8, 16)), recovery=RecoveryConfig(steps=1, learning_rate=1e-2))
    written = stages.export(again, tmp_path / "again")
    assert (written.class_name, written.stock) == (record.class_name, record.stock)
    assert read_plan(tmp_path / "again" / "plan.json").hash == case.plan.hash
    third = load(tmp_path / "again")
    assert torch.equal(case.logits(third), case.logits(again))
    assert not torch.allclose(case.logits(third), case.logits(), atol=0.01)  # it was trained


def test_loading_and_saving_warn_of_nothing(pruned, tmp_path):
    """In a process of its own: transformers says such things once."""
    case = pruned("llama", *UNEVEN)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    code = f"import adapruner; adapruner.load({str(tmp_path / 'out')!r}).save_pretrained({str(tmp_path / 'again')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "config" not in done.stdout + done.stderr


def test_of_an_earlier_release_it_is_saved_with_every_auto_class(pruned, tmp_path):
    """They named the causal language model alone."""
    case = pruned("llama", *UNEVEN)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    config = json.loads((record.path / "config.json").read_text())
    written = dict(config["auto_map"])
    config["auto_map"] = {"AutoModelForCausalLM": written["AutoModelForCausalLM"]}
    (record.path / "config.json").write_text(json.dumps(config))
    write_sums(record.path)
    load(record.path).save_pretrained(tmp_path / "again")
    assert len(written) == 4
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == written


def test_truncated_weights(exported):
    _, record = exported
    weights = record.path / "model.safetensors"
    whole = weights.read_bytes()
    for length in (len(whole) - 1, 100, 3, 0):
        weights.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"^weights: expected whole safetensors, got damage in .*model\.safetensors .*again$"):
            load(record.path)


def test_pickles_are_never_read(exported, tmp_path):
    case, record = exported
    (record.path / "model.safetensors").unlink()
    torch.save(case.model.state_dict(), record.path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="expected whole safetensors"):
        load(record.path)


def test_a_missing_shard(pruned, tmp_path):
    case = pruned("llama", *UNEVEN)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out", max_shard_size="20KB")
    assert torch.equal(case.logits(load(record.path)), case.logits())
    shard = sorted(record.path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"got damage in .*{shard.name}"):
        load(record.path)
    (record.path / "model.safetensors.index.json").write_text('{"weight_map": {')
    with pytest.raises(ModelError, match=r"got damage in model\.safetensors\.index\.json"):
        load(record.path)


@pytest.mark.parametrize("way", ["folder", "link"])
def test_something_else_in_the_place_of_any_file(pruned, tmp_path, way):
    case = pruned("llama", *UNEVEN)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out", max_shard_size="20KB")
    for name in set(record.files) - {"README.md"}:  # which anybody may change
        file = record.path / name
        content = file.read_bytes()
        file.unlink()
        _ = file.mkdir() if way == "folder" else file.symlink_to("nowhere")
        with pytest.raises((ModelError, PlanError), match=r": expected .+, got .+; .+"):
            load(record.path)
        _ = file.rmdir() if way == "folder" else file.unlink()
        file.write_bytes(content)
    assert torch.equal(case.logits(load(record.path)), case.logits())


def test_shapes_other_than_the_configuration_says(exported):
    _, record = exported
    config = json.loads((record.path / "config.json").read_text())
    if "pruned_shapes" in config:
        config["pruned_shapes"]["model.layers.0.mlp.up_proj.weight"][0] += 1
    else:
        config["intermediate_size"] += 1
    (record.path / "config.json").write_text(json.dumps(config))
    write_sums(record.path)  # whoever writes the rest writes them, too
    with pytest.raises(ModelError, match=r"expected the shapes of config\.json, got .* mismatched_keys, first .*mlp"):
        load(record.path)


def test_a_missing_tensor_is_not_made_up(exported):
    from safetensors.torch import load_file, save_file

    _, record = exported
    tensors = load_file(record.path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, record.path / "model.safetensors", metadata={"format": "pt"})
    write_sums(record.path)
    with pytest.raises(ModelError, match=r"got 1 missing_keys, first model\.layers\.1\.mlp\.up_proj\.weight"):
        load(record.path)


def test_a_plan_changed_by_hand(exported):
    case, record = exported
    plan = json.loads((record.path / "plan.json").read_text())
    plan["kept"]["0.ffn"] = plan["kept"]["0.ffn"][:-1]
    (record.path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="the plan was changed"):
        load(record.path)
    (record.path / "plan.json").unlink()
    with pytest.raises(PlanError, match="expected a readable file"):
        load(record.path)
    case.plan.kept["0.ffn"].pop()
    case.plan.save(record.path / "plan.json")  # sound, but another one
    with pytest.raises(ModelError, match=f"expected the plan .*, got {case.plan.hash}"):
        load(record.path)


def test_not_an_export(tmp_path):
    with pytest.raises(ModelError, match=r"got no folder at .*nowhere; check the path"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"without its mark in config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"without its mark in config\.json"):
        load(tmp_path)


def test_a_family_of_a_newer_release(pruned, tmp_path):
    case = pruned("llama", *UNEVEN)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    config = json.loads((record.path / "config.json").read_text())
    (record.path / "config.json").write_text(json.dumps({**config, "architectures": ["PrunedGemma9ForCausalLM"]}))
    write_sums(record.path)
    with pytest.raises(ModelError, match="got 'PrunedGemma9ForCausalLM'; install a newer adapruner"):
        load(record.path)
