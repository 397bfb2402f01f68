"""A recovery that does not come to its end leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from adapruner.recovery import training
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.training import RecoveryConfig, train_recovery
from tests.tiny import random_windows, tiny_llama


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    model, ids = tiny_llama(), random_windows(2, 16, seed=3).input_ids
    model.lm_head.requires_grad_(False)
    before, expected = dict(model.named_parameters()), model(ids).logits
    trains = {name: parameter.requires_grad for name, parameter in before.items()}
    inner, steps = training._step, []

    def step(*arguments: object) -> float:
        steps.append(arguments)
        if len(steps) == 3:
            raise error("here")
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_step", step)
    config = RecoveryConfig(steps=5, learning_rate=0.1, lora=LoRAConfig(r=2, alpha=4, dropout=0.0))
    with pytest.raises(error, match="here"):
        train_recovery(model, random_windows(8, 16, seed=4), config)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert {name: parameter.requires_grad for name, parameter in after.items()} == trains
    assert not hasattr(model, "peft_config")
    assert not model.training
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)
