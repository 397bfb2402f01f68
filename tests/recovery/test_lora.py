from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.surgery import prune_model
from adapruner.recovery.briefly import recover_briefly
from adapruner.recovery.lora import LoRAConfig, activations_as_configured, attach_lora, check_adapters
from adapruner.recovery.merging import merge_lora
from tests.recovery.test_reconstruction import plan_for
from tests.tiny import random_windows, tiny_llama

WINDOWS = random_windows(8, 12, seed=7)
BATCHES = [{name: value for name, value in WINDOWS.__dict__.items() if name in ("input_ids", "labels", "attention_mask")}]


@pytest.fixture
def model() -> Any:
    """Pruned to irregular widths, as recovery finds it."""
    pruned = tiny_llama()
    structure = trace_structure(pruned)
    prune_model(pruned, structure, plan_for(structure))
    return pruned


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(WINDOWS.input_ids, use_cache=False).logits


def adamw(parameters: Any) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)


def test_attached_and_merged_at_once_changes_nothing(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = merge_lora(attach_lora(model, LoRAConfig()))
    assert list(merged.state_dict()) == list(before)
    for name, value in merged.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_recovery_warns_of_nothing_that_a_user_could_not_act_on(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        recover_briefly(model, BATCHES, LoRAConfig(), steps=1, build_optimizer=adamw)


def test_only_adapters_train_and_every_linear_layer_has_one(model: Any) -> None:
    adapted = attach_lora(model, LoRAConfig(r=2))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 3
    assert all("lora_A" in name or "lora_B" in name for name in trained)


def test_the_merged_weight_is_the_sum(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = attach_lora(model, LoRAConfig(r=4, alpha=12)).eval()
    torch.manual_seed(1)
    parts: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, module in adapted.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                b.normal_()
                parts[name.removeprefix("base_model.model.")] = b @ a * (12 / 4)
    expected = logits(adapted)
    merged = merge_lora(adapted)
    assert len(parts) == 21
    for name, part in parts.items():
        torch.testing.assert_close(merged.get_submodule(name).weight, before[f"{name}.weight"] + part)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-3, atol=1e-3)


def test_nothing_of_the_adapters_is_left(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    merged: Any = merge_lora(attach_lora(tiny_llama(), LoRAConfig()))
    assert type(merged) is LlamaForCausalLM
    assert not any("lora" in name or "base_layer" in name for name, _ in merged.named_modules())
    assert not hasattr(merged, "peft_config")
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert merge_lora(merged) is merged
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()), logits(merged))


def test_a_short_recovery_lowers_the_loss_and_leaves_a_plain_model(model: Any) -> None:
    def loss(candidate: Any) -> float:
        with torch.no_grad():
            return float(candidate.eval()(**BATCHES[0], use_cache=False).loss)

    start, state = loss(model), torch.get_rng_state()
    copies = [copy.deepcopy(model) for _ in range(3)]
    settings: dict[str, Any] = {"steps": 25, "build_optimizer": adamw}
    first = recover_briefly(copies[0], BATCHES, LoRAConfig(dropout=0.1), seed=3, clip_norm=1.0, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    same = recover_briefly(copies[1], BATCHES, LoRAConfig(dropout=0.1), seed=3, clip_norm=1.0, **settings)
    other = recover_briefly(copies[2], BATCHES, LoRAConfig(dropout=0.1), seed=4, clip_norm=1.0, **settings)
    assert loss(first) < 0.8 * start
    assert loss(first) == loss(same) != loss(other)
    assert not hasattr(first, "merge_and_unload")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "lora: expected r and alpha of 1 or more, got 0 and 16"),
        ({"alpha": 0}, "lora: expected r and alpha of 1 or more, got 8 and 0"),
        ({"dropout": 1.0}, r"lora.dropout: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LoRAConfig(**options)


def test_an_unknown_target_is_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"lora.target_modules: expected names of linear layers, got .*k_prj"):
        attach_lora(model, LoRAConfig(target_modules=["k_prj"]))


def saved_bytes(model: Any, run: Any) -> int:
    """Bytes of activations that a forward keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for pointer, size in kept.items() if pointer not in {p.data_ptr() for p in model.parameters()})


def test_activations_that_are_computed_again_give_the_same_and_are_not_kept(model: Any) -> None:
    results, kept = [], []
    for again in (False, True):
        recovered = recover_briefly(
            copy.deepcopy(model), BATCHES, LoRAConfig(dropout=0.1, checkpoint_activations=again), steps=3, build_optimizer=adamw, seed=3
        )
        assert not recovered.is_gradient_checkpointing
        results.append(recovered.state_dict())
        adapted = attach_lora(copy.deepcopy(model), LoRAConfig()).train()
        with activations_as_configured(adapted, LoRAConfig(checkpoint_activations=again)):
            kept.append(saved_bytes(adapted, lambda adapted=adapted: adapted(**BATCHES[0], use_cache=False)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert kept[1] < 0.4 * kept[0]


def test_what_the_caller_had_set_stays(model: Any) -> None:
    model.gradient_checkpointing_enable()
    recover_briefly(model, BATCHES, LoRAConfig(checkpoint_activations=True), steps=1, build_optimizer=adamw)
    assert model.is_gradient_checkpointing


def test_a_class_that_cannot_is_told_before_anything_is_trained(model: Any) -> None:
    model.supports_gradient_checkpointing = False
    check_adapters(model, LoRAConfig())
    with pytest.raises(ConfigurationError, match=r"checkpoint_activations: expected a model that can, got LlamaForCausalLM, which cannot"):
        check_adapters(model, LoRAConfig(checkpoint_activations=True))
