from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.export.options import ExportOptions
from adapruner.export.reexport import reexport
from adapruner.models.tracing import trace_structure
from adapruner.pruning.surgery import prune_model
from tests.models.families import conformance
from tests.models.families.table import ROWS, build

HIDDEN = tuple(range(0, 32, 2))


@pytest.mark.parametrize("widths", ["uniform", "irregular"])
@pytest.mark.parametrize("name", ["Llama 3, TinyLlama", "Qwen3", "Gemma 2", "OPT", "GPT-2"])
def test_removed_layers_and_channels_are_not_in_the_folder(tmp_path: Path, name: str, widths: Any) -> None:
    model = build(next(row for row in ROWS if row.name == name), num_hidden_layers=3)
    structure = trace_structure(model)
    plan = conformance.plan_for(structure, widths)
    kept = {n: list(range(plan.units[n])) if n.startswith("1.") else units for n, units in plan.kept.items()}
    hidden = list(HIDDEN) if name in ("Llama 3, TinyLlama", "Qwen3") else None
    plan = replace(plan, kept=kept, removed_layers=[1], kept_hidden=hidden)
    prune_model(model, structure, plan)
    export_model(model, None, structure, plan, tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.config.num_hidden_layers == 2
    assert hidden is None or again.config.hidden_size == len(HIDDEN)
    torch.testing.assert_close(conformance.logits(again), conformance.logits(model), rtol=0, atol=1e-5)
    reexport(tmp_path / "out", tmp_path / "padded", ExportOptions(pad=True), {})  # the folder itself says enough to widen it
    torch.testing.assert_close(conformance.logits(load(tmp_path / "padded")), conformance.logits(model), rtol=0, atol=1e-5)
