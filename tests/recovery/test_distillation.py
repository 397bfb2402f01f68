"""The loss of a recovery that distils: against sums over the vocabulary, in parts and whole, with padding and prompts."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adapruner.errors import ConfigurationError
from adapruner.models import next_token_loss
from adapruner.recovery.distillation import (
    Distillation,
    DistillationConfig,
    TopTokens,
    check_teacher,
    check_vocabulary,
    divergence,
    training_loss,
)
from adapruner.recovery.lora import LoRAConfig, attach_lora
from tests.models.families.table import ROWS, build
from tests.tiny import tiny_llama

WORDS = 11


def logits(rows: int, seed: int) -> Tensor:
    return 3 * torch.randn(rows, WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_divergence(student: Tensor, teacher: Tensor, k: int, temperature: float) -> float:
    """One position, one outcome after the other."""
    p, q = ((z / temperature).exp() / (z / temperature).exp().sum() for z in (teacher, student))
    best = sorted(range(len(p)), key=lambda token: -float(p[token]))[:k]
    outcomes = [[token] for token in best] + [[token for token in range(len(p)) if token not in best]]
    total = 0.0
    for outcome in outcomes:
        of_p, of_q = sum(float(p[t]) for t in outcome), sum(float(q[t]) for t in outcome)
        if of_p > 0:
            total += of_p * (torch.tensor(of_p, dtype=torch.float64).log() - torch.tensor(of_q, dtype=torch.float64).log()).item()
    return total


@pytest.mark.parametrize("k", [1, 4, WORDS - 1, WORDS])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_the_sum_over_outcomes(k: int, temperature: float) -> None:
    student, teacher = logits(6, 0), logits(6, 1)
    found = divergence(student, TopTokens.of_logits(teacher, k, temperature), temperature)
    expected = [slow_divergence(s, t, k, temperature) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_of_all_tokens_it_is_pytorchs_and_of_fewer_at_most_that() -> None:
    student, teacher = logits(8, 0), logits(8, 1)
    whole = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, TopTokens.of_logits(teacher, WORDS)), whole)
    found = [divergence(student, TopTokens.of_logits(teacher, k)) for k in (1, 3, 6, WORDS)]
    assert all(bool((fewer <= more + 1e-12).all()) for fewer, more in itertools.pairwise(found))
    assert bool((found[0] < whole - 1e-3).any())


@pytest.mark.parametrize("k", [2, WORDS])
def test_of_the_teacher_itself_value_and_gradient_are_zero(k: int) -> None:
    student = logits(5, 2).requires_grad_(True)
    found = divergence(student, TopTokens.of_logits(student.detach(), k, 2.0), 2.0)
    found.sum().backward()
    assert float(found.detach().abs().max()) == 0.0
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-15


@pytest.mark.parametrize("k", [3, WORDS])
def test_the_gradient_is_the_difference_of_masses(k: int) -> None:
    """Of the kept tokens q - p; of the others q less their share of the teacher's rest."""
    student, teacher = logits(4, 3).requires_grad_(True), TopTokens.of_logits(logits(4, 4), k)
    divergence(student, teacher).sum().backward()
    q = student.detach().softmax(-1)
    kept = torch.zeros_like(q, dtype=torch.bool).scatter(1, teacher.index, True)
    others = q.masked_fill(kept, 0.0)
    share = others / others.sum(-1, keepdim=True).clamp_min(1e-300) * teacher.log_rest.exp()[:, None]
    p = torch.zeros_like(q).scatter(1, teacher.index, teacher.log_probs.exp()) + share
    assert student.grad is not None
    torch.testing.assert_close(student.grad, q - p, rtol=1e-9, atol=1e-12)


def test_tokens_without_probability_count_nothing() -> None:
    teacher = logits(3, 5)
    teacher[:, 4:] = float("-inf")
    student = logits(3, 6).requires_grad_(True)
    found = divergence(student, TopTokens.of_logits(teacher, 6))
    found.sum().backward()
    assert bool(torch.isfinite(found).all())
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    expected = torch.tensor([slow_divergence(s, t, 6, 1.0) for s, t in zip(student.detach(), teacher, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected)


@dataclass
class Known:
    """A teacher that keeps whole logits ``[batch, seq_len, vocabulary]``."""

    logits: Tensor
    k: int
    temperature: float = 1.0
    identity = "known"

    def of(self, batch: dict[str, Tensor]) -> TopTokens:
        counted = torch.cat([batch["labels"][:, 1:] != -100, torch.zeros_like(batch["labels"][:, :1], dtype=torch.bool)], 1)
        return TopTokens.of_logits(self.logits[counted], self.k, self.temperature)


def batch_of(model: Any) -> dict[str, Tensor]:
    """Padding at the end of one row, a prompt at the start of another."""
    ids = torch.randint(3, model.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, :5] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def expected_loss(model: Any, teacher: Tensor, batch: dict[str, Tensor], config: DistillationConfig) -> Tensor:
    """Whole logits, one position after the other."""
    student = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    total, counted = torch.zeros(()), 0
    for row in range(len(student)):
        for place in range(student.shape[1] - 1):
            target = batch["labels"][row, place + 1]
            if target == -100:
                continue
            counted += 1
            p = TopTokens.of_logits(teacher[row, place][None], config.top_k, config.temperature)
            away = divergence(student[row, place][None], p, config.temperature)[0] * config.temperature**2
            total = total + config.weight * away + (1 - config.weight) * cross_entropy(student[row, place][None], target[None])
    return total / counted


@pytest.mark.parametrize("name", ["Llama 3, TinyLlama", "Gemma 2", "OPT", "Phi-3, Phi-4", "Mixtral"])
@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("trained", ["adapters", "everything"])
def test_the_mean_loss_in_parts_is_that_of_whole_logits(monkeypatch: pytest.MonkeyPatch, name: str, weight: float, trained: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    model, other = build(row), build(row)
    monkeypatch.setattr(next_token_loss, "MOST_BYTES", 4 * model.config.vocab_size * 5)  # five positions at a time
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        batch = batch_of(model)
        teacher = other(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if trained == "adapters":
        model = attach_lora(model, LoRAConfig(r=2, dropout=0.0))
    config = DistillationConfig(weight, temperature=2.0, top_k=5)
    expected = expected_loss(model, teacher, batch, config)
    expected.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = training_loss(model, Distillation(Known(teacher, 5, 2.0), config), batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    found.backward()
    for n, parameter in model.named_parameters():
        if n in wanted:
            torch.testing.assert_close(parameter.grad, wanted[n], rtol=1e-3, atol=1e-5)
    assert wanted


def test_a_student_that_is_the_teacher_learns_nothing() -> None:
    model = tiny_llama()
    batch = batch_of(model)
    with torch.no_grad():
        teacher = copy.deepcopy(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    config = DistillationConfig(1.0, top_k=7)
    loss = training_loss(model, Distillation(Known(teacher, 7), config), batch)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest < 1e-5
    model.zero_grad()
    training_loss(model, None, batch).backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) > 1e-2  # which the text would teach it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, r"recovery\.distillation\.weight: expected a number in \[0, 1\], got 1\.5; give 0\.5"),
        ({"weight": float("nan")}, r"recovery\.distillation\.weight: expected a number in \[0, 1\], got nan"),
        ({"temperature": 0.0}, r"recovery\.distillation\.temperature: expected a positive number, got 0\.0"),
        ({"top_k": 0}, r"recovery\.distillation\.top_k: expected 1 or more, got 0"),
        ({"batch_size": 0}, r"recovery\.distillation\.batch_size: expected 1 or more, got 0"),
        ({"weight": "0.5"}, r"recovery\.distillation\.weight: expected a number, got '0\.5'"),
    ],
)
def test_what_cannot_be_distilled_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DistillationConfig(**options)


def test_teachers_that_do_not_fit_are_refused() -> None:
    config = DistillationConfig(0.5, teacher="larger")
    check_vocabulary(config, 96, 96)
    check_vocabulary(DistillationConfig(top_k=1000), 96)  # nothing is distilled
    with pytest.raises(ConfigurationError, match=r"top_k: expected at most 96, the vocabulary, got 1000; give 32"):
        check_vocabulary(DistillationConfig(0.5, top_k=1000), 96)
    with pytest.raises(ConfigurationError, match=r"teacher: expected one of the model's 96 tokens, got 128 in 'larger'; give one with"):
        check_vocabulary(config, 96, 128)
    with pytest.raises(ConfigurationError, match=r"distillation: expected what adapruner\.stages\.teach returned of the dense model"):
        check_teacher(DistillationConfig(0.5), None)
    made = Distillation(Known(torch.zeros(1, 1, 1), 1), config)
    with pytest.raises(ConfigurationError, match=r"distillation: expected one made for DistillationConfig\(weight=0\.25.*, got one for"):
        check_teacher(DistillationConfig(0.25), made)
