"""Gram matrices of the parts against sums over tokens under explicit sample weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapruner.errors import DataError, ModelError
from adapruner.importance.gram import GramMatrices, collect_grams, gram_gib
from adapruner.models.tracing import trace_structure
from tests.conftest import build_model, build_windows
from tests.oracles.metrics import states_of

PARTS = torch.tensor([2, 0, 0, 2, 0])  # part 1 is empty
PART_WEIGHTS = torch.tensor([0.3, 0.4, 0.9])
SAMPLE_WEIGHTS = torch.tensor([0.9 / 2, 0.1, 0.1, 0.9 / 2, 0.1])


@pytest.mark.parametrize("family", ["llama_gqa_2", "qwen3"])
def test_weighted_parts_equal_weighted_tokens(family: str) -> None:
    model, windows = build_model(family).train(), build_windows(padded=True)
    structure = trace_structure(model)
    done: list[int] = []
    grams = collect_grams(model, structure, windows, PARTS, 3, batch_size=2, progress=done.append)
    assert done == [2, 4, 5]
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert grams.samples.tolist() == [3.0, 0.0, 2.0]
    assert grams.tokens.tolist() == [8.0 + 7.0 + 5.0, 0.0, 9.0 + 6.0]
    for name, states in states_of(model.eval(), structure, windows).items():
        rows = torch.cat(states)
        for found, weights in (
            (grams.moments(name, PART_WEIGHTS), SAMPLE_WEIGHTS),
            (grams.moments(name), torch.full((5,), 0.2)),
        ):
            counts = torch.cat([w.repeat(len(x)) for w, x in zip(weights.double(), states, strict=True)])[:, None]
            torch.testing.assert_close(found.gram.double(), (rows * counts).T @ rows, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.total.double(), (rows * counts).sum(0), rtol=1e-4, atol=1e-5)
            assert float(found.tokens) == pytest.approx(float(counts.sum()), rel=1e-5)


def test_round_trip_and_size(tmp_path: Any) -> None:
    model = build_model("llama_gqa_4")
    structure = trace_structure(model)
    grams = collect_grams(model, structure, build_windows(), PARTS, 3)
    save_file(grams.to_tensors(), tmp_path / "grams.safetensors")
    back = GramMatrices.from_tensors(load_file(tmp_path / "grams.safetensors"))
    assert len(back.samples) == 3
    for name in grams.grams:
        assert torch.equal(back.moments(name, PART_WEIGHTS).gram, grams.moments(name, PART_WEIGHTS).gram)
        assert torch.equal(back.moments(name, PART_WEIGHTS).total, grams.moments(name, PART_WEIGHTS).total)
    held = sum(v.numel() * 4 for table in (grams.grams, grams.sums) for v in table.values())
    assert gram_gib(structure, 3) * 2**30 == held


def test_bad_input_is_refused() -> None:
    model, windows = build_model("llama"), build_windows()
    structure = trace_structure(model)
    grams = collect_grams(model, structure, windows, PARTS, 3)
    with pytest.raises(DataError, match=r"part_weights: expected 3 of them, got shape \(5,\)"):
        grams.moments("0.ffn", torch.ones(5))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"expected finite inputs, got inf or nan in group 1\.ffn"):
        collect_grams(model, structure, windows, PARTS, 3)
