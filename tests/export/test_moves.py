from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.anatomy.tracing import trace_anatomy
from adapruner.errors import ModelError
from adapruner.export.again import _dense_anatomy
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.pruning.surgery import prune_model
from tests.families import conformance
from tests.families.table import ROWS, build

HIDDEN = tuple(range(0, 32, 2))


@pytest.mark.parametrize("widths", ["uniform", "irregular"])
@pytest.mark.parametrize("name", ["Llama 3, TinyLlama", "Qwen3", "Gemma 2", "OPT", "GPT-2"])
def test_removed_layers_and_channels_are_not_in_the_folder(tmp_path: Path, name: str, widths: Any) -> None:
    model = build(next(row for row in ROWS if row.name == name), num_hidden_layers=3)
    anatomy = trace_anatomy(model)
    plan = conformance.plan_for(anatomy, widths)
    kept = {n: list(range(plan.units[n])) if n.startswith("1.") else units for n, units in plan.kept.items()}
    hidden = list(HIDDEN) if name in ("Llama 3, TinyLlama", "Qwen3") else None
    plan = replace(plan, kept=kept, removed_layers=[1], kept_hidden=hidden)
    prune_model(model, anatomy, plan)
    export_model(model, None, anatomy, plan, tmp_path / "out")
    with pytest.raises(ModelError, match=r"pad: expected an export that has all its layers .* export from the run"):
        _dense_anatomy(model, plan)
    again = load(tmp_path / "out")
    assert again.config.num_hidden_layers == 2
    assert hidden is None or again.config.hidden_size == len(HIDDEN)
    torch.testing.assert_close(conformance.logits(again), conformance.logits(model), rtol=0, atol=1e-5)
