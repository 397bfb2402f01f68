"""What GGUF export refuses, in one line and before anything is left on disk."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.formats.gguf import check_gguf, write_gguf
from tests.export.cases import UNEVEN

from .test_writing import EVEN, LLAMA3, VOCABULARY, export

pytest.importorskip("gguf")


@pytest.mark.parametrize(
    ("family", "kept", "output_bias", "changes", "message"),
    [
        ("qwen3", UNEVEN, False, {}, r"qwen3: all layers need equal widths; openelm: no output layer of its own\); export it padded"),
        ("qwen3", EVEN, True, {}, r"a qwen3 that fits none \(qwen3: no bias in down_proj, o_proj; openelm: no bias in down_proj, o_proj\)"),
        ("qwen3", EVEN, False, {"rope_parameters": LLAMA3}, "qwen3: no rotary factors"),
        ("llama", EVEN, False, {"hidden_act": "gelu"}, "hidden_act: expected silu, which llama.cpp computes there, got 'gelu'"),
        (
            "llama",
            EVEN,
            False,
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type: expected default, linear or llama3, got 'yarn'",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(pruned, tmp_path, family, kept, output_bias, changes, message):
    case = pruned(family, *kept, output_bias=output_bias, vocab_size=VOCABULARY, **changes)
    with pytest.raises(ModelError, match=message):
        write_gguf(export(case, tmp_path / "out"), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "model_type: expected a family that GGUF export knows, got 'gemma2'; Known: llama, mistral"),
        ({"head_dim": 7}, "weights: expected whole heads of 7 channels, got "),
        ({"num_hidden_layers": 4}, r"weights: expected model.layers.3.self_attn.q_proj.weight, got none"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got a part of each head"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters: expected one rotation for all layers"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(pruned, tmp_path, change, message):
    folder = export(pruned("llama", *EVEN, vocab_size=VOCABULARY), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message):
        write_gguf(folder, tmp_path / "model.gguf")


def test_folders_that_are_no_exports_are_refused(pruned, tmp_path):
    with pytest.raises(ModelError, match=r"folder: expected an exported model, got .* without config.json"):
        write_gguf(tmp_path, tmp_path / "model.gguf")
    folder = export(pruned("llama", *EVEN, vocab_size=VOCABULARY), tmp_path / "out")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"weights: expected whole safetensors, got damage in .*model.safetensors"):
        write_gguf(folder, tmp_path / "model.gguf")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"folder: expected JSON in .*config.json, got damage"):
        write_gguf(folder, tmp_path / "model.gguf")


def test_arguments_are_checked_before_anything_is_read(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="dtype: expected a type that GGUF export writes, got 'float'; did you mean 'float32'"):
        write_gguf(tmp_path / "none", tmp_path / "model.gguf", "float")
    with pytest.raises(ConfigurationError, match="gguf: expected a file, got the folder"):
        write_gguf(tmp_path / "none", tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigurationError, match=r"gguf: expected the package gguf .*, got none; pip install 'adapruner\[gguf\]'"):
        check_gguf(tmp_path / "model.gguf")


def test_an_earlier_file_stays_until_the_new_one_is_whole(pruned, tmp_path):
    case = pruned("llama", *EVEN, vocab_size=VOCABULARY)
    with torch.no_grad():
        case.model.lm_head.weight[0, 0] = 1e6
    folder, file = export(case, tmp_path / "out"), tmp_path / "deep" / "model.gguf"
    file.parent.mkdir()
    file.write_text("earlier")
    with pytest.raises(ModelError, match=r"dtype: expected weights within the range of float16, got larger ones in output.weight"):
        write_gguf(folder, file, "float16")
    assert [(path.name, path.read_text()) for path in file.parent.iterdir()] == [("model.gguf", "earlier")]
    write_gguf(folder, file, "bfloat16")
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]


def test_a_place_that_cannot_be_written_is_one_line(pruned, tmp_path):
    folder = export(pruned("llama", *EVEN, vocab_size=VOCABULARY), tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"gguf: expected to write .*config.json/model.gguf, got .*; make room or choose another"):
        write_gguf(folder, folder / "config.json" / "model.gguf")
