"""Which row of a batch makes a loss or a gradient no number: rows are spoiled by a token whose embedding is spoiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.importance.finiteness import find_bad_gradient, find_bad_loss
from tests.tiny import random_windows, tiny_llama

SPOILED = 90


def batch_with(*rows: int) -> dict[str, Any]:
    """Six rows of 16 tokens; the spoiled token stands in these rows."""
    windows = random_windows(6, 16, seed=3)
    for row in rows:
        windows.input_ids[row, 7] = windows.labels[row, 7] = SPOILED
    return {"input_ids": windows.input_ids, "labels": windows.labels, "attention_mask": windows.attention_mask}


@pytest.fixture
def model() -> Any:
    spoiled = tiny_llama()
    with torch.no_grad():
        spoiled.model.embed_tokens.weight[SPOILED] = float("inf")
    return spoiled


@pytest.mark.parametrize(("rows", "first"), [((2, 4), 2), ((5,), 5), ((0,), 0)])
def test_the_first_spoiled_row_and_its_layer(model: Any, rows: tuple[int, ...], first: int) -> None:
    assert not torch.isfinite(model(**batch_with(*rows)).loss)
    assert find_bad_loss(model, batch_with(*rows)) == (first, "model.embed_tokens")


def test_the_layer_where_it_begins(model: Any) -> None:
    with torch.no_grad():
        model.model.embed_tokens.weight[SPOILED] = 1.0
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    assert find_bad_loss(model, batch_with()) == (0, "model.layers.1.mlp.down_proj")


def test_a_row_without_anything_to_predict_is_not_to_blame(model: Any) -> None:
    batch = batch_with()
    batch["labels"][1] = -100  # the mean over no token is no number
    assert find_bad_loss(model, batch) is None


def test_a_gradient_is_traced_to_its_row_and_nothing_is_left_behind(model: Any) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    assert find_bad_gradient(model, batch_with(3), weight) == 3
    assert find_bad_gradient(model, batch_with(), weight) is None
    assert torch.equal(weight.grad, torch.ones_like(weight))
