from __future__ import annotations

from typing import Any

import pytest
import torch

from adapruner.models.loading import load_language_model
from adapruner.models.rotary import restore_rotary
from tests.tiny import save_tiny, tiny_llama


def frequencies(model: Any) -> list[torch.Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_that_a_cast_rounded_are_those_of_the_library_again(dtype: torch.dtype) -> None:
    model = tiny_llama(intermediate_size=64)
    exact = [buffer.clone() for buffer in frequencies(model)]
    model.to(dtype)
    assert any(not torch.equal(a.float(), b) for a, b in zip(frequencies(model), exact, strict=True))
    assert restore_rotary(torch.nn.ModuleList([model])) == len(exact) > 0
    assert all(torch.equal(a, b) for a, b in zip(frequencies(model), exact, strict=True))
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    assert restore_rotary(model) == 0


def test_a_cast_model_then_computes_what_a_loaded_one_does(tmp_path: Any) -> None:
    folder = save_tiny(tmp_path / "model", intermediate_size=64, initializer_range=0.2)
    cast, loaded = load_language_model(str(folder)).bfloat16(), load_language_model(str(folder), dtype="bfloat16")
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        assert not torch.equal(cast(ids).logits, loaded(ids).logits)
        restore_rotary(cast)
        assert torch.equal(cast(ids).logits, loaded(ids).logits)
