"""``adapruner export`` into other formats, padded, and as a push."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.export import reexport
from adapruner.export.formats import FORMATS, FormatRecord
from adapruner.export.loading import load
from adapruner.export.options import ExportOptions
from adapruner.export.staging import is_export
from adapruner.pruning.plan import read_plan
from tests.cli.export.finished_run import (
    Finished,
    export,
    logits_of,
    refused,
)


class FakeGguf:
    """Notes what it is asked, in the place of the real format."""

    name = "gguf"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def check(self, target: Path, options: ExportOptions) -> None:
        self.seen.append((target, options.dtype))

    def write(self, folder: Path, target: Path, options: ExportOptions) -> FormatRecord:
        self.seen.append((folder.name, is_export(folder), read_plan(folder / "plan.json").hash, options.dtype))
        return FormatRecord(target, "for llama.cpp, llama in float16", ("a note",))


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch) -> FakeGguf:
    fake = FakeGguf()
    assert "gguf" in FORMATS
    monkeypatch.setitem(FORMATS._members, "gguf", fake)
    return fake


def test_decilm_s_form_is_written_of_the_whole_folder(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    export("run", "deci", "--no-verify", "--format", "deci")
    assert "wrote" in (said := capsys.readouterr().out)
    assert "deci for vLLM, DeciLMForCausalLM" in said
    assert json.loads(Path("deci/config.json").read_text())["architectures"] == ["DeciLMForCausalLM"]
    export("run", "deci", "--no-verify", "--format", "deci")  # an earlier one is replaced
    assert read_plan("deci/plan.json").hash == read_plan("run/plan.json").hash
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith((".adapruner", "deci"))) == ["deci"]


def test_gguf_is_written_of_the_whole_folder(run: Finished, capsys: pytest.CaptureFixture[str], gguf: FakeGguf) -> None:
    export("run", "out", "--no-verify", "--dtype", "float16", "--gguf", "small.gguf")
    assert gguf.seen == [(Path("small.gguf"), "float16"), ("out", True, read_plan("run/plan.json").hash, "float16")]
    said = capsys.readouterr().out
    assert "wrote small.gguf for llama.cpp, llama in float16" in said
    assert "adapruner: a note" in said
    assert is_export(Path("out"))


def test_another_format_is_written_alone(run: Finished, capsys: pytest.CaptureFixture[str], gguf: FakeGguf) -> None:
    export("run/model", "small.gguf", "--no-verify", "--format", "gguf")
    place = Path("small.gguf").absolute()
    assert gguf.seen == [(place, None), ("small", True, read_plan("run/plan.json").hash, None)]
    said = capsys.readouterr().out
    assert f"wrote {place} for llama.cpp, llama in float16" in said
    assert "exported" not in said
    assert os.listdir() == ["run"]  # the fake wrote nothing, and the folder that it was made of is gone


OWN_FORMAT = """
import json
from adapruner.export.formats import FormatRecord, register_export_format
from adapruner.errors import ConfigurationError

@register_export_format
class Shapes:
    name = "shapes"

    def check(self, target, options):
        if target.suffix != ".json":
            raise ConfigurationError(f"folder: expected a name that ends with .json, got {target.name}; rename it")

    def write(self, folder, target, options):
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        target.write_text(json.dumps(shapes))
        return FormatRecord(target, "with the shapes of all tensors")
"""


def test_a_user_s_own_file_adds_a_format(run: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_format.py").write_text(OWN_FORMAT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = ("--format", "shapes", "--import", "own_format.py")
    try:
        refused(capsys, "folder: expected a name that ends with .json, got out; rename it", "run", "out", *own)
        export("run", "out.json", "--no-verify", *own)
        assert f"wrote {Path('out.json').absolute()} with the shapes of all tensors" in capsys.readouterr().out
        expected = {name: list(tensor.shape) for name, tensor in load("run/model").state_dict().items()}
        assert json.loads(Path("out.json").read_text()) == expected
    finally:
        FORMATS.remove("shapes")


@pytest.mark.parametrize("source", ["run", "run/model"])
def test_padded_to_the_widest_layer_a_stock_class_loads_it(run: Finished, source: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert not reexport.is_stock(run.folder / "model")
    export(source, "out", "--pad", "--no-verify")
    stock = AutoModelForCausalLM.from_pretrained("out")
    assert type(stock).__module__.startswith("transformers.")
    torch.testing.assert_close(logits_of(stock), run.logits, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained("out")("w1 w5")["input_ids"] == [5, 9]
    card = Path("out/README.md").read_text()
    assert "padded with zeros to the widest layer" in card
    assert "license: mit" in card
    assert "| adapruner | recovered |" in card or source == "run/model"
    export("out", "again", "--pad", "--no-verify")  # nothing to widen any more
    torch.testing.assert_close(logits_of(load("again")), run.logits, rtol=0, atol=1e-5)


def test_a_push_comes_last_and_is_told(run: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from adapruner.export import push

    calls: list[Any] = []
    monkeypatch.setattr(push, "check_push", lambda name: calls.append(("check", name, Path("out").exists())))
    monkeypatch.setattr(push, "push_folder", lambda folder, name, text: calls.append((is_export(folder), name, text)) or "there")
    export("run/model", "out", "--no-verify", "--push", "me/small")
    plan = read_plan("run/plan.json").hash
    assert calls == [("check", "me/small", False), (True, "me/small", f"Pruned model, plan {plan}")]
    assert "pushed to there" in capsys.readouterr().out
