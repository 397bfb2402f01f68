"""Losses in parts equal the model's own, with gradients, in every family; what is held of the logits stays below the limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from adapruner.models import next_token_loss
from adapruner.models.next_token_loss import logit_parts, mean_next_token_loss, next_token_losses, splits_at_head
from tests.conftest import build_model
from tests.models.families.table import ROWS, Row, build

BY_NAME = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def windows(model: Any, rows: int = 3, seq_len: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, model.config.vocab_size, (rows, seq_len), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, :5] = -100
    return ids, mask, labels


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three positions of 64 words at a time, or fewer of more."""
    monkeypatch.setattr(next_token_loss, "MOST_BYTES", 4 * 64 * 3)


@BY_NAME
def test_equal_to_the_models_own_loss_and_gradients(row: Row, in_parts: None) -> None:
    model = build(row)
    ids, mask, labels = windows(model)
    own = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    own.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = mean_next_token_loss(model, labels, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
    found.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        parts = torch.cat(list(logit_parts(model, input_ids=ids, attention_mask=mask)))
        torch.testing.assert_close(parts, logits.flatten(0, 1), rtol=1e-4, atol=1e-5)
        each = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        torch.testing.assert_close(next_token_losses(model, labels, input_ids=ids, attention_mask=mask)[:, :-1], each, rtol=1e-4, atol=1e-5)


@BY_NAME
def test_a_frozen_head_computes_no_logits_twice(row: Row, in_parts: None) -> None:
    model = build(row).requires_grad_(False)
    ids, mask, labels = windows(model)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))

    def gradient(losses: Any) -> torch.Tensor:
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        (losses(embedded) * weights).sum().backward()
        assert embedded.grad is not None
        return embedded.grad

    def whole(embedded: torch.Tensor) -> torch.Tensor:
        logits = model(inputs_embeds=embedded, attention_mask=mask).logits
        targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
        return cross_entropy(logits.transpose(1, 2), targets, reduction="none")

    calls: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    splits_at_head(model)
    calls.clear()
    found = gradient(lambda embedded: next_token_losses(model, labels, inputs_embeds=embedded, attention_mask=mask))
    parts = len(calls)
    next_token_losses(model, labels, input_ids=ids, attention_mask=mask)
    handle.remove()
    assert parts == len(calls) - parts > 1
    torch.testing.assert_close(found, gradient(whole), rtol=1e-3, atol=1e-6)


@BY_NAME
def test_promised_families_are_taken_apart(row: Row) -> None:
    model = build(row).train()
    assert splits_at_head(model)
    assert model.training


def test_no_more_logits_than_the_limit(in_parts: None) -> None:
    model, seen = build_model("llama"), []
    model.lm_head.register_forward_hook(lambda *a: seen.append(a[2].numel() * 4))
    ids, mask, labels = windows(model)
    splits_at_head(model)
    seen.clear()
    mean_next_token_loss(model, labels, input_ids=ids, attention_mask=mask).backward()
    assert len(seen) > 4
    assert max(seen) <= next_token_loss.MOST_BYTES


def test_a_small_batch_is_the_models_own_bit_for_bit() -> None:
    model = build_model("llama")
    ids, mask, labels = windows(model)
    found = mean_next_token_loss(model, labels, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found, model(input_ids=ids, attention_mask=mask, labels=labels).loss, rtol=1e-6, atol=0)


def test_adapters_stay_active(in_parts: None) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    ids, mask, labels = windows(model)
    own = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    found = mean_next_token_loss(model, labels, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
    found.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)


def test_what_cannot_be_taken_apart_is_computed_whole(in_parts: None) -> None:
    """A model whose logits depend on more than its trunk's output, one that is no Hugging Face model, and a loss of its own."""
    model = build_model("llama")
    ids, mask, labels = windows(model)
    inner = type(model).forward

    class Shifted(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, **options: Any) -> Any:
            output = inner(self, input_ids=input_ids, **options)
            output.logits = output.logits + (0.0 if input_ids is None else input_ids[..., None].float())
            return output

    model.__class__ = Shifted
    assert not splits_at_head(model)
    own = cross_entropy(model(input_ids=ids, attention_mask=mask).logits[:, :-1].transpose(1, 2), labels[:, 1:])
    torch.testing.assert_close(mean_next_token_loss(model, labels, input_ids=ids, attention_mask=mask), own)
    assert not splits_at_head(torch.nn.Linear(2, 2))


def test_a_model_that_is_sharded_after_it_was_tried_is_called_whole(in_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(next(row for row in ROWS if row.model_type == "llama"))
    assert splits_at_head(model)
    monkeypatch.setattr(torch.nn.Parameter, "full_tensor", lambda self: self, raising=False)  # as parameters of a sharded model have it
    assert not splits_at_head(model)
