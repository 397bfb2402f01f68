"""Iterative pruning: an export is pruned again as it is, whatever the widths of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import adapruner
from adapruner.export.verification import verify_export
from adapruner.models.fingerprint import fingerprint_model
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.masking import masked
from adapruner.pruning.plan import read_plan
from tests.tiny import random_windows, tiny_llama, word_tokenizer

IDS = torch.arange(4, 20)[None]
FRACTION = 0.2
RECIPE = adapruner.Recipe({"l2": 1.0})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits  # type: ignore[no-any-return]


def first_round(folder: Path, **options: Any) -> Any:
    """An irregular export of a Llama with 480 channels and 8 query heads over 4 KV heads."""
    model = tiny_llama(intermediate_size=480, num_attention_heads=8, num_key_value_heads=4, hidden_size=64)
    windows = random_windows(8, 16, seed=1)
    result = adapruner.prune(model, calibration=windows.input_ids, budget=FRACTION, recipe=RECIPE, progress=False, **options)
    assert not result.plan.is_uniform()
    result.model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return result


@pytest.mark.parametrize("units", ["kv_group", "query_head"])
def test_two_rounds_on_an_irregular_export(tmp_path: Path, units: str) -> None:
    first_round(tmp_path / "first", attention_units=units)
    model = adapruner.load(tmp_path / "first")
    dense, structure = count_parameters(model), trace_structure(model, units)  # type: ignore[arg-type]
    assert len({structure.group(layer, "ffn").units for layer in range(structure.layers)}) > 1
    assert structure.parameters == dense
    before = logits(model)
    windows = random_windows(8, 16, seed=2)
    result = adapruner.prune(
        str(tmp_path / "first"), calibration=windows.input_ids, budget=FRACTION, recovery=2, recipe=RECIPE,
        attention_units=units, progress=False,
    )  # fmt: skip
    plan = result.plan
    assert plan.model["fingerprint"] == fingerprint_model(model)
    left = structure.block_parameters - (dense - count_parameters(result.model))
    assert left / structure.block_parameters == pytest.approx(1 - FRACTION, abs=0.002)
    assert plan.pruned_fraction == pytest.approx(FRACTION, abs=0.002)
    with masked(model, structure, plan) as switched_off:
        expected = logits(switched_off)
    torch.testing.assert_close(logits(model), before)
    torch.testing.assert_close(logits(adapruner.stages.apply(model, plan).model), expected, rtol=0, atol=1e-5)
    result.model.save_pretrained(tmp_path / "second")
    assert verify_export(tmp_path / "second", result.model, IDS).difference < 1e-4
    again = adapruner.load(tmp_path / "second")
    assert count_parameters(again) == count_parameters(result.model)
    torch.testing.assert_close(logits(again), logits(result.model), rtol=0, atol=1e-5)
    assert read_plan(tmp_path / "second" / "plan.json").hash == plan.hash


def test_two_rounds_remove_what_one_does(tmp_path: Path) -> None:
    """Two of 20 % are one of 36 %, within the 0.2 % that each may be off; what is kept differs, since scores are taken anew."""
    first_round(tmp_path / "first")
    left = trace_structure(adapruner.load(tmp_path / "first")).block_parameters
    windows, dense = (
        random_windows(8, 16, seed=1),
        tiny_llama(intermediate_size=480, num_attention_heads=8, num_key_value_heads=4, hidden_size=64),
    )
    whole = trace_structure(dense).block_parameters
    options: dict[str, Any] = {"calibration": windows.input_ids, "recipe": RECIPE, "progress": False}
    twice = adapruner.prune(str(tmp_path / "first"), budget=FRACTION, **options)
    once = adapruner.prune(dense, budget=1 - (1 - FRACTION) ** 2, **options)
    after = trace_structure(twice.model).block_parameters
    assert after / left == pytest.approx(1 - FRACTION, abs=0.002)
    assert after / whole == pytest.approx(trace_structure(once.model).block_parameters / whole, abs=0.004)
    assert twice.plan.pruned_fraction == pytest.approx(FRACTION, abs=0.002)
