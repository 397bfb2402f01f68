"""An export's notes name the rows that a quantiser's groups do not divide, wherever the export comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import adapruner
from adapruner.export.folder import export_model
from adapruner.export.options import ExportOptions
from adapruner.export.quantising import group_notes
from adapruner.export.reexport import reexport
from adapruner.models.tracing import trace_structure
from adapruner.pruning.surgery import prune_model
from tests.export.cases import UNEVEN, plan_for, tiny_model
from tests.models.families import conformance
from tests.models.families.table import ROWS, build

NOTE = (
    "quantising: groups of 32 (Q8_0, Q4_0, int4 in groups of 32) do not divide rows of o_proj (16) and down_proj (9, 11, 24); "
    "of 64 (int4 in groups of 64) also the residual stream (32): "
    "such matrices are refused or keep more bits; FFN widths that fit come from --pruning.search.space.allocation.round_to and the size "
    "of the group, such as 128"
)


def odd_rows(model: Any, size: int) -> bool:
    """The slow way: whether some linear layer reads a number of channels that groups of ``size`` do not divide."""
    return any(module.in_features % size for module in model.modules() if hasattr(module, "in_features"))


def test_the_note_is_in_the_record_and_in_the_card(pruned: Any, tmp_path: Path) -> None:
    case = pruned("llama", *UNEVEN)
    assert NOTE in export_model(case.model, None, case.structure, case.plan, tmp_path / "out").notes
    assert f"- {NOTE}\n" in (tmp_path / "out" / "README.md").read_text()


def test_it_is_there_when_an_export_is_written_again(pruned: Any, tmp_path: Path) -> None:
    case = pruned("llama", *UNEVEN)
    export_model(case.model, None, case.structure, case.plan, tmp_path / "out")
    assert NOTE in reexport(tmp_path / "out", tmp_path / "again", ExportOptions(dtype="bfloat16"), {})[1].notes
    assert f"- {NOTE}\n" in (tmp_path / "again" / "README.md").read_text()
    (tmp_path / "out" / "README.md").unlink()
    reexport(tmp_path / "out", tmp_path / "anew", ExportOptions(), {})
    assert f"- {NOTE}\n" in (tmp_path / "anew" / "README.md").read_text()
    adapruner.load(tmp_path / "out").save_pretrained(tmp_path / "saved")
    assert f"- {NOTE}\n" in (tmp_path / "saved" / "README.md").read_text()


def test_padding_changes_what_is_odd(pruned: Any, tmp_path: Path) -> None:
    case = pruned("llama", [1, 2, 1], [9, 32, 11], intermediate_size=32)
    record = export_model(case.model, None, case.structure, case.plan, tmp_path / "out", pad=True)
    (note,) = (note for note in record.notes if note.startswith("quantising"))
    assert "groups of 64 (int4 in groups of 64) do not divide rows of the residual stream (32)" in note
    assert "groups of 32 do" not in note


def test_widths_that_every_group_divides_need_no_note(tmp_path: Path) -> None:
    model = tiny_model("llama", hidden_size=256, intermediate_size=768, head_dim=128)
    structure = trace_structure(model)
    plan = plan_for(model, structure, [1, 2, 1], [256, 512, 256])
    prune_model(model, structure, plan)
    assert not [n for n in export_model(model, None, structure, plan, tmp_path / "out").notes if n.startswith("quantising")]


@pytest.mark.parametrize(("hidden", "ffn", "first"), [(64, 96, 64), (64, 80, 32), (128, 128, 256), (128, 192, 128)])
def test_it_begins_with_the_smallest_group_that_does_not_fit(hidden: int, ffn: int, first: int) -> None:
    model = tiny_model("llama", hidden_size=hidden, intermediate_size=ffn)
    assert odd_rows(model, first)
    assert first == 32 or not odd_rows(model, first // 2)
    assert group_notes(model)[0].startswith(f"quantising: groups of {first} (")


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_every_family_has_it(name: str, tmp_path: Path) -> None:
    """Fused experts and GPT-2's transposed matrices, too: an FFN of an odd width is named by its length."""
    model = build(next(row for row in ROWS if row.name == name))
    structure = trace_structure(model)
    plan = conformance.plan_for(structure, "uniform")
    prune_model(model, structure, plan)
    (note,) = (n for n in export_model(model, None, structure, plan, tmp_path / "out").notes if n.startswith("quantising"))
    ffn = next(group for group in structure.groups if group.kind == "ffn")
    width = len(plan.kept[ffn.name]) // ffn.sets
    assert width % 256
    assert re.search(rf"\b{width}\b", note)
