from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import adapruner
from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.folder import export_model
from adapruner.export.saving import save_as_export
from adapruner.export.verification import verify_export
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.pruning.depth_and_width import DepthWidthCut, lift_plan
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.surgery import prune_model
from adapruner.recovery.lora import LoRAConfig, attach_lora
from adapruner.recovery.merging import merge_lora

from .cases import LAYERS, UNEVEN, VOCABULARY, plan_for, tiny_model

IDS = torch.arange(3, 23).view(2, 10) % VOCABULARY
EVEN = ([1, 1, 1], [10, 10, 10])


def without_layer(model: Any, structure: ModelStructure, plan: PruningPlan) -> PruningPlan:
    """The plan without its middle layer."""
    stay = [0, 2]
    kept = {f"{now}.{kind}": plan.kept[f"{before}.{kind}"] for now, before in enumerate(stay) for kind in ("attention", "ffn")}
    units = {name: plan.units[name] for name in kept}
    inner = PruningPlan(plan.model, kept, units, dict(plan.parameters), dict(plan.budget), dict(plan.recipe), dict(plan.provenance))
    return lift_plan(inner, structure, DepthWidthCut((1,), None), plan.model)


def pruned_model(shape: str, **changes: Any) -> tuple[Any, ModelStructure, PruningPlan]:
    """A model that its own ``save_pretrained`` writes as an export."""
    model = tiny_model("llama", **changes)
    structure = trace_structure(model)
    plan = plan_for(model, structure, *(EVEN if shape == "uniform" else UNEVEN))
    if shape == "without a layer":
        plan = without_layer(model, structure, plan)
    prune_model(model, structure, plan)
    save_as_export(model, structure, plan)
    return model, structure, plan


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", ["uniform", "irregular", "without a layer"])
def test_what_is_saved_loads_in_a_fresh_process_and_by_our_own_loader(tmp_path: Path, shape: str) -> None:
    model, structure, plan = pruned_model(shape)
    model.save_pretrained(tmp_path / "out", max_shard_size="20KB")
    assert verify_export(tmp_path / "out", model, IDS).difference < 1e-5
    loaded = adapruner.load(tmp_path / "out")
    assert loaded.config.num_hidden_layers == (LAYERS - 1 if shape == "without a layer" else LAYERS)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    record = export_model(model, None, structure, plan, tmp_path / "by_export", max_shard_size="20KB")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == record.files
    for name in record.files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "by_export" / name).read_bytes(), name


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    model, structure, plan = pruned_model("uniform")
    note = "no tokenizer in this folder: take the base model's"
    assert note in export_model(model, None, structure, plan, tmp_path / "out").notes
    assert f"- {note}\n" in (tmp_path / "out" / "README.md").read_text()


def _by_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _by_load(model: Any) -> Any:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return adapruner.load(folder)


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _by_torch, _by_load]


@pytest.mark.parametrize("copied", [*COPIES, lambda model: copy.deepcopy(_by_load(model))])
@pytest.mark.parametrize("shape", ["uniform", "irregular", "without a layer"])
def test_a_copy_saves_the_copy(tmp_path: Path, copied: Callable[[Any], Any], shape: str) -> None:
    model, _, plan = pruned_model(shape)
    twin = copied(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2.0)
    assert not torch.equal(logits(twin), logits(model))
    for name, one in (("copy", twin), ("original", model)):
        one.save_pretrained(tmp_path / name)
        torch.testing.assert_close(logits(adapruner.load(tmp_path / name)), logits(one), rtol=0, atol=1e-5)
        assert read_plan(tmp_path / name / "plan.json").hash == plan.hash
        assert plan.hash in (tmp_path / name / "README.md").read_text()


def test_adapters_are_saved_by_peft_and_the_merged_model_as_an_export(tmp_path: Path) -> None:
    from peft import PeftModel

    model, _, _ = pruned_model("irregular")
    model.save_pretrained(tmp_path / "before")
    adapted = attach_lora(model, LoRAConfig(r=2, dropout=0.0))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "adapter").iterdir()}
    again = PeftModel.from_pretrained(adapruner.load(tmp_path / "before"), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match=r"base_layer.*merge adapters first"):
        model.save_pretrained(tmp_path / "too_early")
    merge_lora(adapted).save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    torch.testing.assert_close(logits(adapruner.load(tmp_path / "merged")), expected, rtol=0, atol=1e-4)


def test_saving_again_replaces_the_weights_and_leaves_the_files_of_others(tmp_path: Path, tokenizer: Any) -> None:
    model, _, _ = pruned_model("uniform")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("a card of my own")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model*.safetensors"))) > 1
    assert (tmp_path / "README.md").read_text() == "a card of my own"
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    (tmp_path / "adapter").mkdir()  # belongs to the earlier weights
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*.safetensors")] == ["model.safetensors"]
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert not (tmp_path / "adapter").exists()
    assert (tmp_path / "tokenizer.json").exists()
    assert not list(tmp_path.glob(".adapruner-*"))
    torch.testing.assert_close(logits(adapruner.load(tmp_path)), logits(model), rtol=0, atol=1e-5)


def test_a_model_that_is_no_longer_at_its_widths_is_refused(tmp_path: Path) -> None:
    model, _, _ = pruned_model("irregular")
    down = model.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight[:, :5])
    with pytest.raises(
        ModelError, match=r"expected model\.layers\.1\.mlp\.down_proj to keep 24 rows or columns, got 5; prune it by this plan"
    ):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arguments_that_change_what_is_written_are_refused(tmp_path: Path) -> None:
    model, _, _ = pruned_model("uniform")
    with pytest.raises(ConfigurationError, match=r"save_pretrained: expected save_directory, .*, got state_dict; leave it"):
        model.save_pretrained(tmp_path / "out", state_dict=model.state_dict(), safe_serialization=True)
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "out", safe_serialization=True, token=None, push_to_hub=False)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_files_of_others_stay_and_a_kill_between_two_files_never_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    model, _, _ = pruned_model("irregular")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model_backup.safetensors").write_text("somebody's")
    model.save_pretrained(out)
    replace, names = Path.replace, len(list(out.iterdir())) - 1
    for killed_at in range(1, names + 1):
        calls = iter(range(1, 100))

        def killed(self: Path, target: Any, calls: Any = calls, killed_at: int = killed_at) -> Path:
            if Path(target).parent == out and next(calls) == killed_at:
                raise Killed
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(Killed, match=r"^$"):
            model.save_pretrained(out)
        monkeypatch.setattr(Path, "replace", replace)
        assert verify_export(out, model, IDS).difference < 1e-5  # old and new files are of the same model here
    model.save_pretrained(out)
    assert (out / "model_backup.safetensors").read_text() == "somebody's"
    assert not list(out.glob(".adapruner-*"))
