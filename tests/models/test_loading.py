from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapruner import stages
from adapruner.errors import ConfigurationError, ModelError
from adapruner.models.loading import check_language_model, load_language_model, load_tokenizer, model_source
from tests.tiny import save_tiny, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def test_a_folder_is_loaded_as_asked(folder: Path) -> None:
    model = load_language_model(str(folder), dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    as_saved = load_language_model(str(folder))
    assert as_saved.dtype == torch.float32
    assert {name: tensor.shape for name, tensor in as_saved.state_dict().items()} == {
        name: tensor.shape for name, tensor in tiny_llama().state_dict().items()
    }


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("w0 w1")["input_ids"] == [4, 5]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token == tokenizer.eos_token


def test_demo_stands_for_the_embedded_folder() -> None:
    assert Path(model_source("demo"), "config.json").is_file()
    assert model_source("org/model") == "org/model"


def test_an_unknown_dtype_is_refused_before_loading() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.dtype: expected one of auto, float32, bfloat16, float16, got 'fp16'"):
        load_language_model("gone/model", dtype="fp16")


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"model\.name_or_path: expected a folder or a hub name, got .* which is not there; correct"):
        load_language_model(name)


@pytest.mark.parametrize(("load", "what"), [(load_language_model, "model"), (load_tokenizer, "tokenizer")])
def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, load: Any, what: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    message = f"model.name_or_path: expected a {what} to load from .*, got .*; give a local folder with config.json and safetensors"
    with pytest.raises(ModelError, match=message) as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_missing_tensors_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    gone = sorted(name for name in weights if "q_proj" in name)
    save_file({name: tensor for name, tensor in weights.items() if name not in gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"got none for {gone[0]} and {len(gone) - 1} more: they would be random; restore"):
        load_language_model(str(folder))


def test_only_a_whole_causal_lm_passes() -> None:
    check_language_model(tiny_llama(), "Mine.model")
    for other, name in ((None, "NoneType"), (nn.Linear(2, 2), "Linear")):
        with pytest.raises(ModelError, match=rf"model_attribute: expected a Hugging Face causal LM in Mine\.model, got {name}; name the"):
            check_language_model(other, "Mine.model")


def test_a_model_that_is_sharded_already_is_refused() -> None:
    class Spread(nn.Parameter):
        def full_tensor(self) -> Any:
            return self.data

    model = tiny_llama()
    model.lm_head.weight = Spread(model.lm_head.weight.detach())
    with pytest.raises(ModelError, match=r"configure_model: expected it to build the whole model, got one that is sharded before"):
        check_language_model(model, "Mine.model")


def _compiled_in_place(model: Any) -> Any:
    model.compile()
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.compile, "expected a model that is not compiled in model, got one; compile it after pruning"),
        (_compiled_in_place, "expected a model that is not compiled in model, got one; compile it after pruning"),
        (lambda model: model.to("meta"), r"expected a model with weights in model, got model\.embed_tokens\.weight on the meta device"),
    ],
)
def test_a_compiled_or_empty_model_is_refused_from_python_too(change: Any, message: str) -> None:
    import adapruner

    windows = torch.arange(32).view(8, 4)
    for call in (adapruner.prune, stages.score, stages.recover):
        with pytest.raises(ModelError, match=message):
            call(change(tiny_llama()), None, windows)
