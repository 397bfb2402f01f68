"""The steps of docs/add-an-export-format.md, with the very code that stands there; and what a registry of formats promises."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.export.folder import export_model
from adapruner.export.formats import FORMATS, FormatRecord, register_export_format
from adapruner.export.loading import load
from adapruner.export.options import ExportOptions
from tests.export.cases import UNEVEN

PAGE = Path(__file__).parents[3] / "docs" / "add-an-export-format.md"


@pytest.fixture
def torch_file() -> Iterator[Any]:
    """The format of the page."""
    (code,) = re.findall(r"```python\n(.*?)   ```", PAGE.read_text(), re.DOTALL)
    exec(re.sub(r"(?m)^   ", "", code), {"__name__": "torch_file"})
    yield FORMATS.find("torch")
    FORMATS.remove("torch")


def test_the_page_s_format_writes_the_model(pruned: Any, tmp_path: Path, torch_file: Any) -> None:
    case = pruned("llama", *UNEVEN)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    target = tmp_path / "model.pt"
    torch_file.check(target, ExportOptions())
    record = torch_file.write(tmp_path / "out", target, ExportOptions())
    found, expected = torch.load(target, weights_only=True), load(tmp_path / "out").state_dict()
    assert record == FormatRecord(target, f"for torch, {len(expected)} tensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ConfigurationError, match=r"folder: expected a file name that ends with \.pt, got model; rename it"):
        torch_file.check(tmp_path / "model", ExportOptions())


def test_the_formats_that_come_along_are_known_and_their_names_taken() -> None:
    assert set(FORMATS) == {"deci", "gguf", "huggingface"}
    with pytest.raises(ConfigurationError, match="export format: expected a new name, got 'gguf', which is taken"):
        register_export_format(type("Other", (), {"name": "gguf"}))
    with pytest.raises(ConfigurationError, match="format: expected a known export format, got 'hugging'; did you mean 'huggingface'"):
        FORMATS.find("hugging", "format")


def test_an_entry_point_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_format.py").write_text("class Other:\n    name = 'other'\n\nOTHER = Other()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = importlib.metadata.EntryPoint(name="other", value="other_format:OTHER", group="adapruner.export_formats")
    monkeypatch.setattr("adapruner.registry.entry_points", lambda group: [entry] if group == "adapruner.export_formats" else [])
    monkeypatch.setattr(FORMATS, "_loaded", False)
    assert FORMATS.find("other").name == "other"
    FORMATS.remove("other")


def test_the_hugging_face_folder_moves_to_its_place(pruned: Any, tmp_path: Path) -> None:
    case = pruned("llama", [1] * 3, [10] * 3)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "scratch" / "out")
    folder, target = FORMATS.find("huggingface"), tmp_path / "out"
    folder.check(target, ExportOptions())
    record = folder.write(tmp_path / "scratch" / "out", target, ExportOptions())
    assert record == FormatRecord(target, "for transformers, LlamaForCausalLM")
    assert torch.equal(case.logits(load(target)), case.logits())
    assert not (tmp_path / "scratch" / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match=r"folder: expected an empty folder or an earlier export, got other files"):
        folder.check(tmp_path / "taken", ExportOptions())
