"""An export is a model again: it is traced, pruned, refitted, adapted, merged, padded and exported like a dense one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ModelError
from adapruner.export.folder import export_model
from adapruner.export.loading import load
from adapruner.export.saving import save_as_export
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.before_pruning import remove_padding
from adapruner.pruning.masking import masked
from adapruner.pruning.surgery import prune_model, pruned
from adapruner.recovery.lora import LoRAConfig, attach_lora
from adapruner.recovery.merging import merge_lora
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
    model = load(tmp_path / "once", "float32")
    structure = trace_structure(model, *second)
    dense = conformance.logits(model.double())
    torch.testing.assert_close(dense.float(), expected, rtol=0, atol=1e-4)
    assert structure.parameters == count_parameters(model)
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


@pytest.mark.parametrize("name", ["Llama 3, TinyLlama", "Phi-3, Phi-4", "OPT", "BLOOM", "Mixtral"])
@pytest.mark.parametrize("widths", ["irregular", "uniform"])
def test_padding_is_left_out_again(tmp_path: Path, name: str, widths: str) -> None:
    units = ("query_head", "channel") if name == "Llama 3, TinyLlama" else ("kv_group", "channel")
    expected = first_round(name, tmp_path / "plain", units, widths)
    first_round(name, tmp_path / "padded", units, widths, pad=True)
    plain, padded = load(tmp_path / "plain"), load(tmp_path / "padded")
    zeros = count_parameters(padded) - count_parameters(plain)
    assert (zeros > 0) == (widths == "irregular")
    assert remove_padding(padded) == zeros
    assert remove_padding(padded) == 0
    torch.testing.assert_close(conformance.logits(padded), expected, rtol=0, atol=1e-4)
    structures = [trace_structure(model) for model in (plain, padded)]
    assert [g.units for g in structures[0].groups] == [g.units for g in structures[1].groups]
    plan = conformance.plan_for(structures[1], "irregular", seed=4)
    prune_model(padded, structures[1], plan)
    export_model(padded, None, structures[1], plan, tmp_path / "again", pad=True)
    torch.testing.assert_close(conformance.logits(load(tmp_path / "again")), conformance.logits(padded), rtol=0, atol=1e-4)


def test_a_model_that_is_no_export_keeps_its_zeros() -> None:
    model = build(BY_NAME["Llama 3, TinyLlama"])
    for linear in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
        torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    assert remove_padding(model) == 0


def test_of_a_group_that_is_all_zeros_one_unit_stays(tmp_path: Path) -> None:
    first_round("Llama 3, TinyLlama", tmp_path / "out")
    model = load(tmp_path / "out")
    for linear in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.down_proj):
        torch.nn.init.zeros_(linear.weight)
    assert remove_padding(model) > 0
    assert model.model.layers[0].mlp.down_proj.in_features == 1


@pytest.mark.parametrize("widths", ["irregular", "uniform"])
@pytest.mark.parametrize("biased_again", [False, True])
def test_added_biases_stay(tmp_path: Path, widths: str, biased_again: bool) -> None:
    expected = first_round("Qwen2", tmp_path / "once", widths=widths, output_bias=True)
    model = load(tmp_path / "once")
    structure = trace_structure(model)
    assert all(group.added_bias for group in structure.groups)
    torch.testing.assert_close(conformance.logits(model), expected, rtol=0, atol=1e-4)
    plan = replace(conformance.plan_for(structure, "irregular", seed=3), output_bias=biased_again)
    prune_model(model, structure, plan)
    export_model(model, None, structure, plan, tmp_path / "twice")
    torch.testing.assert_close(conformance.logits(load(tmp_path / "twice")), conformance.logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("pad", [False, True])
def test_adapters_train_what_is_there_and_merge(tmp_path: Path, pad: bool) -> None:
    first_round("Qwen3", tmp_path / "once", pad=pad)
    model = load(tmp_path / "once")
    remove_padding(model)
    structure = trace_structure(model)
    plan = conformance.plan_for(structure, "irregular", seed=3)
    prune_model(model, structure, plan)
    adapted = attach_lora(model, LoRAConfig(r=2, alpha=4, dropout=0.0))
    ids, optimizer = conformance.token_ids(), torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
    merged = merge_lora(adapted)
    assert count_parameters(merged) == structure.after(plan.kept).parameters
    export_model(merged, None, structure, plan, tmp_path / "twice")
    torch.testing.assert_close(conformance.logits(load(tmp_path / "twice")), conformance.logits(merged), rtol=0, atol=1e-4)


def test_a_router_is_not_padded(tmp_path: Path) -> None:
    model = build(BY_NAME["Mixtral"])
    structure = trace_structure(model, "kv_group", "expert")
    kept = {g.name: list(range(g.units if g.kind == "attention" else g.at_least + (g.layer == 0))) for g in structure.groups}
    plan = replace(conformance.plan_for(structure, "uniform"), kept=kept)
    prune_model(model, structure, plan)
    with pytest.raises(ModelError, match=r"pad: expected equally many experts in all layers, got 2 and 3"):
        export_model(model, None, structure, plan, tmp_path / "out", pad=True)


@pytest.mark.parametrize("name", ["Phi-3, Phi-4", "BLOOM", "GPT-2", "Mixtral", "Qwen2-MoE"])
def test_a_pickle_and_a_loaded_export_are_saved_as_exports(tmp_path: Path, name: str) -> None:
    """Views of the configuration, hooks and routers whose class is made on the spot are pickled, too."""
    model = build(BY_NAME[name])
    structure = trace_structure(model)
    plan = conformance.plan_for(structure, "irregular")
    prune_model(model, structure, plan)
    save_as_export(model, structure, plan)
    expected = conformance.logits(model)
    pickle.loads(pickle.dumps(model)).save_pretrained(tmp_path / "pickled")
    loaded = load(tmp_path / "pickled")
    torch.testing.assert_close(conformance.logits(loaded), expected, rtol=0, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(conformance.logits(load(tmp_path / "again")), expected, rtol=0, atol=1e-5)


def test_a_loaded_export_without_its_padding_is_saved_at_its_widths(tmp_path: Path) -> None:
    expected = first_round("Llama 3, TinyLlama", tmp_path / "padded", pad=True)
    model = load(tmp_path / "padded")
    remove_padding(model)
    model.save_pretrained(tmp_path / "again")
    assert count_parameters(load(tmp_path / "again")) == count_parameters(model) < count_parameters(load(tmp_path / "padded"))
    torch.testing.assert_close(conformance.logits(load(tmp_path / "again")), expected, rtol=0, atol=1e-5)
