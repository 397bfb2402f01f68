"""Every row of the table through every step of the conformance suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from adapruner.export.loading import load
from adapruner.models.families import TRIED, known_families
from adapruner.models.tracing import trace_structure
from tests.models.families import conformance
from tests.models.families.table import ROWS, Row, build
from tests.oracles.family_maps import family_maps, key_value_heads

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
FORMS = ("uniform", "irregular", "query_head")


@every_row
def test_structure_is_that_written_by_hand(row: Row) -> None:
    if row.model_type in EXPERTS:
        pytest.skip("the wide form of experts has an oracle of its own, in test_experts.py")
    model = build(row)
    config, expected = model.config, family_maps(model.config)
    structure = trace_structure(model)
    found = {g.kind: [(m.module, m.dim, m.index.tolist()) for m in g.members] for g in structure.of_layer(0)}
    assert found == {kind: expected[kind] for kind in row.removes}
    assert {kind for kind, _ in structure.left_whole} == {"attention", "ffn"} - set(row.removes)
    if "attention" in row.removes:
        heads = structure.group(1, "attention")
        assert (heads.units, heads.head_dim * config.num_attention_heads) == (key_value_heads(config), heads.channels)


@every_row
@pytest.mark.parametrize("units", ["kv_group", "query_head"])
def test_pruned_is_masked(row: Row, units: Any) -> None:
    conformance.check_cut(row, units)


@every_row
def test_generation_with_the_cache(row: Row) -> None:
    conformance.check_generation(row)


@every_row
@pytest.mark.parametrize("form", FORMS)
def test_exported_and_loaded_in_a_fresh_process(exports: Any, row: Row, form: str) -> None:
    made = exports[row.name, form]
    torch.testing.assert_close(made["loaded"], made["expected"], rtol=0, atol=1e-5)
    assert made["record"].stock is (row.stock and form != "irregular") or form == "query_head"


@every_row
def test_every_auto_class_loads_the_same_trunk(exports: Any, row: Row) -> None:
    made = exports[row.name, "irregular"]
    stock = type(build(row).config)
    classes = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModel")
    assert set(made["trunks"]) == {auto for auto in classes if stock in getattr(transformers, auto)._model_mapping}
    for auto, hidden in made["trunks"].items():
        torch.testing.assert_close(hidden, made["trunk"], rtol=0, atol=1e-5, msg=lambda text, auto=auto: f"{auto}: {text}")


@every_row
def test_loaded_without_running_code_of_the_folder(exports: Any, row: Row) -> None:
    made = exports[row.name, "irregular"]
    torch.testing.assert_close(conformance.logits(load(made["record"].path)), made["expected"], rtol=0, atol=1e-5)


@every_row
def test_scores_are_those_of_full_gradients(row: Row) -> None:
    conformance.check_scores(row)


@every_row
def test_refit(row: Row) -> None:
    conformance.check_refit(row)


@every_row
def test_recovery(row: Row) -> None:
    conformance.check_recovery(row)


def test_every_written_family_is_in_the_table() -> None:
    assert {row.model_type for row in ROWS} <= TRIED
    assert set(known_families()) <= {row.model_type for row in ROWS}
