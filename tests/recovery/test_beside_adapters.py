"""Norms and biases that train beside adapters; the oracle is peft's own way of training them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapruner import stages
from adapruner.errors import ConfigurationError
from adapruner.export.loading import load
from adapruner.recovery import training
from adapruner.recovery.beside_adapters import parameters_beside
from adapruner.recovery.briefly import recover_briefly
from adapruner.recovery.early_stop import EarlyStopConfig
from adapruner.recovery.lora import LoRAConfig, attach_lora, describe_lora
from adapruner.recovery.merging import merge_lora
from adapruner.recovery.training import RecoveryConfig, train_recovery
from tests.models.families.table import ROWS, build
from tests.tiny import random_windows, tiny_llama

WINDOWS = random_windows(8, 12, seed=7)
BATCHES = [{name: getattr(WINDOWS, name) for name in ("input_ids", "labels", "attention_mask")}]


def adamw(parameters: Any) -> tuple[torch.optim.Optimizer, Any]:
    return torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0), None


def by_peft(parts: list[str]) -> dict[str, torch.Tensor]:
    """Trained by peft's ``modules_to_save`` and ``bias``, step by step, merged by peft."""
    norms = ["input_layernorm", "post_attention_layernorm", "norm"] if "norms" in parts else None
    bias: Any = "all" if "biases" in parts else "none"
    model = tiny_llama(attention_bias=True)
    torch.manual_seed(0)
    settings = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules="all-linear", modules_to_save=norms, bias=bias)
    adapted: Any = get_peft_model(model, settings).train()
    optimizer, _ = adamw([p for p in adapted.parameters() if p.requires_grad])
    for _ in range(5):
        optimizer.zero_grad()
        adapted(**BATCHES[0]).loss.backward()
        optimizer.step()
    return adapted.merge_and_unload().state_dict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("parts", [["norms"], ["biases"], ["norms", "biases"]])
def test_it_is_what_peft_trains(parts: list[str]) -> None:
    config, before = LoRAConfig(r=2, alpha=4, dropout=0.0, also_train=parts), tiny_llama(attention_bias=True).state_dict()
    model = recover_briefly(tiny_llama(attention_bias=True), BATCHES, config, steps=5, build_optimizer=adamw)
    found = model.state_dict()
    for name, value in by_peft(parts).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert torch.equal(found["model.norm.weight"], before["model.norm.weight"]) != ("norms" in parts)
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert torch.equal(found[bias], before[bias]) != ("biases" in parts)
    assert not hasattr(model, "peft_config")
    assert list(found) == list(before)


def test_attached_and_merged_at_once_changes_nothing() -> None:
    model = tiny_llama(attention_bias=True)
    before = copy.deepcopy(model.state_dict())
    merged = merge_lora(attach_lora(model, LoRAConfig(also_train=["norms", "biases"])))
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in before.items())


def test_the_export_is_the_trained_model(tmp_path: Path) -> None:
    model = tiny_llama(intermediate_size=480)
    scored = stages.score(model, None, random_windows(8, 16, seed=1), 0.3, recipe=stages.Recipe({"l2": 1.0}), reconstruction=None)
    stages.apply(model, stages.search(scored))
    seen: list[torch.Tensor] = []
    inner = training.make_plain

    def remember(adapted: Any) -> Any:
        with torch.no_grad():
            seen.append(adapted.eval()(WINDOWS.input_ids).logits)
        return inner(adapted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_plain", remember)
        config = RecoveryConfig(steps=4, learning_rate=1e-2, lora=LoRAConfig(r=2, alpha=4, dropout=0.0, also_train=["norms"]))
        stages.recover(model, None, WINDOWS, config)
    stages.export(model, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(WINDOWS.input_ids).logits, seen[0], rtol=1e-4, atol=1e-5)
    assert float(model.model.norm.weight.detach().sub(1).abs().max()) > 1e-3  # they did train


def config(**options: Any) -> RecoveryConfig:
    lora = LoRAConfig(r=2, alpha=4, dropout=0.1, also_train=["norms"])
    return RecoveryConfig(**{"steps": 6, "batch_size": 2, "learning_rate": 1e-2, "every_n_steps": 1, "lora": lora, **options})


def test_a_killed_one_leaves_the_model_as_it_was_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = train_recovery(tiny_llama(), WINDOWS, config()).model.state_dict()
    inner = training._step

    def killed(adapted: Any, batch: Any, state: Any, *rest: Any) -> float:
        if state.step == 4:
            raise KeyboardInterrupt("here")
        return inner(adapted, batch, state, *rest)

    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", killed)
        with pytest.raises(KeyboardInterrupt, match="here"):
            train_recovery(model, WINDOWS, config(), folder=tmp_path)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    resumed = train_recovery(model, WINDOWS, config(), folder=tmp_path).model.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())


def test_the_best_look_brings_them_back_too() -> None:
    held_out = random_windows(4, 12, seed=9)
    looks = EarlyStopConfig(every_n_steps=1, patience=9)
    judged = train_recovery(tiny_llama(), WINDOWS, config(steps=20, learning_rate=5e-2, early_stop=looks), held_out=held_out)
    assert judged.looks is not None
    best = judged.looks.best_step
    assert best is not None
    assert 0 < best < 20
    shorter = train_recovery(tiny_llama(), WINDOWS, config(steps=best, learning_rate=5e-2))
    torch.testing.assert_close(judged.model.model.norm.weight, shorter.model.model.norm.weight)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_family_has_norms_in_each_layer(row: Any) -> None:
    model = build(row)
    found = parameters_beside(model, ["norms"])
    if row.model_type == "olmo":  # its norms have no weights
        assert not found
        return
    layers = {name.split(".layers.")[-1].split(".h.")[-1].split(".")[0] for name in found}
    assert {"0", "1"} <= layers
    tables = {id(p) for table in (model.get_input_embeddings(), model.get_output_embeddings()) for p in table.parameters()}
    both = {**found, **parameters_beside(model, ["biases"])}
    assert not any(id(p) in tables for p in both.values())


def test_a_checkpoint_says_it() -> None:
    assert describe_lora(attach_lora(tiny_llama(), LoRAConfig(r=2, also_train=["norms"])))["also_train"] == ["norms"]
    assert describe_lora(attach_lora(tiny_llama(), LoRAConfig(r=2)))["also_train"] == []


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"lora\.also_train: expected parts out of norms, biases, got 'bias'; did you mean 'biases'"
    ):
        LoRAConfig(also_train=["bias"])
    with pytest.raises(ConfigurationError, match=r"recovery\.lora\.also_train: expected parts that the model has, got 'biases', and Llama"):
        train_recovery(tiny_llama(), WINDOWS, config(lora=LoRAConfig(also_train=["biases"])))
    with pytest.raises(ConfigurationError, match=r"recovery\.lora\.also_train: expected norms of 32 bits, .* got bfloat16; load the model"):
        train_recovery(tiny_llama().bfloat16(), WINDOWS, config())
