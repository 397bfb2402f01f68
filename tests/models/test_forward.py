"""A model is as it was, whatever happens while it is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from adapruner.errors import DataError
from adapruner.models.forward import batches, evaluation_mode, frozen, hooked, observe
from tests.oracles.surgery import assert_same, snapshot


def flags(model: Any) -> tuple[list[bool], list[bool]]:
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


def test_modes_and_gradients_come_back_after_an_error(tiny_model: Any) -> None:
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    model.model.norm.weight.requires_grad_(False)
    before = flags(model)

    def run() -> None:
        with evaluation_mode(model), frozen(model):
            assert not any(flags(model)[0] + flags(model)[1])
            assert not torch.is_grad_enabled()
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match=r"^in between$"):
        run()
    assert flags(model) == before
    assert torch.is_grad_enabled()


def test_hooks_go_although_the_last_could_not_be_registered(tiny_model: Any) -> None:
    model = tiny_model("llama")

    def handles() -> Iterator[Any]:
        yield model.lm_head.register_forward_hook(lambda *_: None)
        raise ValueError("no such module")

    with pytest.raises(ValueError, match=r"^no such module$"), hooked(handles()):
        pytest.fail("the block must not run")
    assert not model.lm_head._forward_hooks


def test_observers_see_every_token_once(tiny_model: Any, token_windows: Any) -> None:
    model, windows = tiny_model("llama_gqa_2").train(), token_windows(samples=5, padded=True)
    before, seen, done = snapshot(model), torch.zeros(()), list[int]()

    def add(layer: Any, arguments: Any, keywords: Any, output: Any, counted: Tensor) -> None:
        seen.add_(counted.sum())

    tokens = observe(model, {model.model.layers[1]: add}, windows, batch_size=2, progress=done.append)
    assert tokens == int(windows.attention_mask.sum()) == int(seen)
    assert done == [2, 4, 5]
    assert_same(before, snapshot(model))
    assert not model.model.layers[1]._forward_hooks
    windows.attention_mask.zero_()
    with pytest.raises(DataError, match="windows: expected at least one calibration token to score the model on, got none"):
        observe(model, {}, windows)


def test_no_samples_are_no_batches() -> None:
    assert list(batches(0, 4, lambda _: pytest.fail("nothing was done"))) == []
