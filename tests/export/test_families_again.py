"""An export is a model again: it is traced, pruned, refitted, adapted, merged, padded and exported like a dense one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ModelError
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.masking import masked
from adapruner.pruning.padding import remove_padding
from adapruner.pruning.surgery import prune_model, pruned
from adapruner.recovery.lora import LoRAConfig, attach_lora, merge_lora
from tests.models.families import conformance
from tests.models.families.table import ROWS, build

BY_NAME = {row.name: row for row in ROWS}
#: Family -> units of attention in the first round, of attention and the FFN in the second.
ROUNDS = [
    *((row.name, ("kv_group", "channel"), ("kv_group", "channel")) for row in ROWS),
    ("Llama 3, TinyLlama", ("query_head", "channel"), ("kv_group", "channel")),
    ("Llama 3, TinyLlama", ("query_head", "channel"), ("query_head", "channel")),
    ("Qwen2", ("kv_group", "channel"), ("query_head", "channel")),
    ("Phi-3, Phi-4", ("query_head", "channel"), ("query_head", "channel")),
    ("Mixtral", ("kv_group", "expert"), ("kv_group", "channel")),
    ("Mixtral", ("kv_group", "channel"), ("query_head", "expert")),
    ("Mixtral", ("kv_group", "expert"), ("kv_group", "expert")),
]


def first_round(name: str, folder: Path, units: Any = ("kv_group", "channel"), widths: Any = "irregular", **options: Any) -> Any:
    """A folder with what is left of a model after a first pruning, and its logits."""
    model = build(BY_NAME[name], num_hidden_layers=3) if name != "Mixtral" else build(BY_NAME[name])
    structure = trace_structure(model, *units)
    plan = plan_of(structure, widths, seed=2)
    plan = replace(plan, output_bias=options.pop("output_bias", False))
    prune_model(model, structure, plan)
    with torch.no_grad():
        for group in structure.groups if plan.output_bias else ():
            model.get_submodule(group.output.module).bias.normal_()
    export_model(model, None, structure, plan, folder, **options)
    return conformance.logits(model)


def plan_of(structure: Any, widths: Any, seed: int) -> Any:
    """As the conformance suite's, with as many experts as a token chooses."""
    plan = conformance.plan_for(structure, widths, seed)
    least = {g.name: list(range(g.at_least)) for g in structure.groups if len(plan.kept[g.name]) < g.at_least}
    return replace(plan, kept={**plan.kept, **least})


@pytest.mark.parametrize(("name", "first", "second"), ROUNDS)
def test_an_irregular_export_is_pruned_again(tmp_path: Path, name: str, first: Any, second: Any) -> None:
    expected = first_round(name, tmp_path / "once", first)
    model = load(tmp_path / "once", "float32").double()
    dense, left = conformance.logits(model), count_parameters(model)
    torch.testing.assert_close(dense.float(), expected, rtol=0, atol=1e-4)
    structure = trace_structure(model, *second)
    assert structure.parameters == left
    plan = plan_of(structure, "irregular", seed=3)
    with masked(model, structure, plan):
        masks = conformance.logits(model)
    with pruned(model, structure, plan):
        torch.testing.assert_close(conformance.logits(model), masks, rtol=0, atol=1e-12)
    torch.testing.assert_close(conformance.logits(model), dense, rtol=0, atol=1e-12)
    prune_model(model, structure, plan)
    torch.testing.assert_close(conformance.logits(model), masks, rtol=0, atol=1e-12)
    assert count_parameters(model) == structure.after(plan.kept).parameters
    export_model(model.float(), None, structure, plan, tmp_path / "twice")
    torch.testing.assert_close(conformance.logits(load(tmp_path / "twice")), masks.float(), rtol=0, atol=1e-4)
