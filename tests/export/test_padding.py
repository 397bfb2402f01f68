from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.export.padding import pad_to_uniform
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.surgery import prune_model
from tests.models.families import conformance
from tests.models.families.table import ROWS, build

BY_NAME = {row.name: row for row in ROWS}
NAMES = ["Llama 3, TinyLlama", "Qwen2", "Phi-3, Phi-4", "Gemma 2", "OLMo 2", "Starcoder2", "Mixtral"]


def irregular(name: str, units: Any = "kv_group") -> tuple[Any, Any, Any]:
    model = build(BY_NAME[name])
    structure = trace_structure(model, units)
    plan = conformance.plan_for(structure, "irregular", seed=2)
    assert not plan.is_uniform()
    prune_model(model, structure, plan)
    return model, structure, plan


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("units", ["kv_group", "query_head"])
def test_a_stock_class_computes_what_the_irregular_model_does(tmp_path: Any, name: str, units: str) -> None:
    model, structure, plan = irregular(name, units)
    record = export_model(model, None, structure, plan, tmp_path / "out", pad=True)
    assert record.stock
    torch.testing.assert_close(conformance.logits(load(tmp_path / "out")), conformance.logits(model), rtol=0, atol=1e-5)


def test_the_note_counts_the_zeros(tmp_path: Any) -> None:
    model, structure, plan = irregular("Llama 3, TinyLlama")
    with torch.no_grad():  # so that every zero in the file is padding
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter.eq(0))
    record = export_model(model, None, structure, plan, tmp_path / "out", pad=True)
    zeros = sum(int((tensor == 0).sum()) for tensor in load_file(tmp_path / "out" / "model.safetensors").values())
    assert any(f": {zeros} parameters of the file are zeros" in note for note in record.notes)


def test_the_plan_beside_it_is_the_real_one(tmp_path: Any) -> None:
    from adapruner.pruning.plan import read_plan

    model, structure, plan = irregular("Qwen2")
    export_model(model, None, structure, plan, tmp_path / "out", pad=True)
    assert read_plan(tmp_path / "out" / "plan.json").hash == plan.hash


def test_a_uniform_model_is_left_as_it_is(tmp_path: Any) -> None:
    model = build(BY_NAME["Qwen2"])
    structure = trace_structure(model)
    plan = conformance.plan_for(structure, "uniform")
    prune_model(model, structure, plan)
    assert count_parameters(pad_to_uniform(model, structure)[0]) == count_parameters(model)
    assert not any("zeros" in note for note in export_model(model, None, structure, plan, tmp_path / "out", pad=True).notes)


def test_the_pruned_model_is_not_changed() -> None:
    model, structure, _ = irregular("Llama 3, TinyLlama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pad_to_uniform(model, structure)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
