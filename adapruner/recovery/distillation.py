"""Distillation: the pruned model learns the dense model's next-token distributions, beside or instead of the text's own tokens
(Hinton et al., arXiv 1503.02531). Of each distribution the most likely tokens and the mass of all others are kept
(:mod:`adapruner.recovery.teacher`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from adapruner.argument_checks import check_fields
from adapruner.errors import ConfigurationError
from adapruner.models.next_token_loss import IGNORED, at_least_fp32, cross_entropies, losses_in_parts, mean_next_token_loss, next_labels


@dataclass(frozen=True)
class DistillationConfig:
    """How much of the recovery's loss is the divergence from the dense model.

    Raises:
        ConfigurationError: if a number is out of range.

    >>> DistillationConfig(weight=0.5).beside
    True
    >>> bool(DistillationConfig())
    False
    """

    weight: float = 0.0
    """Share of the divergence in the loss, in [0, 1]; the rest is the cross entropy. 0: no distillation; 1: the divergence alone."""
    temperature: float = 1.0
    """Both distributions are flattened by it; the divergence is multiplied by its square, so that gradients stay as large."""
    top_k: int = 32
    """Most likely tokens whose probabilities are kept at each position; the others count as one. 8 bytes each, on disk."""
    batch_size: int = 8
    """Windows in one forward pass of the teacher."""
    teacher: str | None = None
    """Name or folder of another teacher of the same vocabulary; the model as it was before pruning when empty."""

    def __post_init__(self) -> None:
        check_fields(self, "recovery.distillation.")
        if not 0.0 <= self.weight <= 1.0:
            got = self.weight
            raise ConfigurationError(f"recovery.distillation.weight: expected a number in [0, 1], got {got}; give 0.5, or 0 for none")
        if not 0.0 < self.temperature < math.inf:
            raise ConfigurationError(f"recovery.distillation.temperature: expected a positive number, got {self.temperature}; give 1.0")
        for name in ("top_k", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"recovery.distillation.{name}: expected 1 or more, got {getattr(self, name)}; give a positive number"
                )

    def __bool__(self) -> bool:
        """Whether anything is distilled."""
        return self.weight > 0

    @property
    def beside(self) -> bool:
        """Whether the cross entropy counts, too."""
        return 0 < self.weight < 1

    def to_report(self) -> dict[str, Any] | None:
        """As JSON types; ``None`` without distillation."""
        return {"weight": self.weight, "temperature": self.temperature, "top_k": self.top_k} if self else None


def check_vocabulary(config: DistillationConfig, vocabulary: int, teacher: int | None = None) -> None:
    """Refuses what the model's vocabulary does not allow.

    Args:
        vocabulary: number of logits of the model.
        teacher: of the teacher, where it is another model.

    Raises:
        ConfigurationError: if there are fewer tokens than are to be kept, or the teacher has another number of them.
    """
    if config and config.top_k > vocabulary:
        raise ConfigurationError(f"recovery.distillation.top_k: expected at most {vocabulary}, the vocabulary, got {config.top_k}; give 32")
    if config and teacher is not None and teacher != vocabulary:
        raise ConfigurationError(
            f"recovery.distillation.teacher: expected one of the model's {vocabulary} tokens, got {teacher} in {config.teacher!r}; "
            "give one with the same tokenizer"
        )


@dataclass(frozen=True)
class TopTokens:
    """Next-token distributions at ``n`` positions: the most likely ``k`` tokens, and all others as one."""

    index: Tensor
    """``[n, k]`` int64: the tokens."""
    log_probs: Tensor
    """``[n, k]``: their log-probabilities."""
    log_rest: Tensor
    """``[n]``: the log of the others' mass."""

    @classmethod
    def of_logits(cls, logits: Tensor, k: int, temperature: float = 1.0) -> TopTokens:
        """Of logits ``[n, vocabulary]``, at a temperature; at least in float32.

        >>> found = TopTokens.of_logits(torch.tensor([[0.0, 1.0, 3.0, 2.0]]), k=2)
        >>> found.index.tolist(), round(float(found.log_probs.exp().sum() + found.log_rest.exp().sum()), 6)
        ([[2, 3]], 1.0)
        """
        wide = at_least_fp32(logits) / temperature
        index = wide.topk(k, dim=-1).indices
        return cls(index, *_log_masses(wide, index))

    def __getitem__(self, rows: slice) -> TopTokens:
        return TopTokens(self.index[rows], self.log_probs[rows], self.log_rest[rows])


def divergence(logits: Tensor, teacher: TopTokens, temperature: float = 1.0) -> Tensor:
    """KL divergence ``[n]`` in nats of the teacher's distributions from the student's, over ``k + 1`` outcomes: the teacher's most likely
    tokens, and any other. It is at most the divergence over the whole vocabulary.

    Args:
        logits: of the student, ``[n, vocabulary]``.
        teacher: at the same positions and temperature.

    >>> logits = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    >>> float(divergence(logits, TopTokens.of_logits(logits, k=2)))
    0.0
    """
    wide = at_least_fp32(logits) / temperature
    log_probs, log_rest = _log_masses(wide, teacher.index)
    outcomes = torch.cat([teacher.log_probs, teacher.log_rest[:, None]], 1).to(wide.dtype)
    probs, found = outcomes.exp(), torch.cat([log_probs, log_rest[:, None]], 1)
    return torch.where(probs > 0, probs * (outcomes - found), 0.0).sum(1)


def _log_masses(wide: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[n, k]`` of the tokens, and ``[n]`` of all others together: summed up themselves, not as what is left of 1."""
    total = wide.logsumexp(-1)
    others = wide.scatter(-1, index, torch.finfo(wide.dtype).min).logsumexp(-1)  # -inf for all of them would have no gradient
    return wide.gather(-1, index) - total[:, None], others - total


class Teacher(Protocol):
    """What knows a batch's distributions: :class:`adapruner.recovery.teacher.TeacherTargets`."""

    @property
    def identity(self) -> str:
        """Name of everything that they depend on."""

    def of(self, batch: dict[str, Tensor]) -> TopTokens:
        """At the batch's counted positions, in their order."""


@dataclass(frozen=True)
class Distillation:
    """The loss of a recovery that distils; a module's ``training_step`` returns ``distillation.mean_loss(model, **batch)``."""

    targets: Teacher
    config: DistillationConfig

    def losses(self, model: Any, labels: Tensor, **inputs: Any) -> Tensor:
        """The mixed loss ``[batch, seq_len]`` in nats of the token after each position; 0 where none is counted.

        Args:
            model, labels, inputs: as for :func:`adapruner.models.next_token_loss.next_token_losses`.

        Raises:
            ConfigurationError: if the teacher has not seen one of the windows.
        """
        targets = next_labels(labels)
        flat = targets.flatten()
        counted, teacher = (flat != IGNORED), self.targets.of({"labels": labels, **inputs})
        before = [0, *counted.cumsum(0).tolist()]  # counted positions before each
        weight, temperature = self.config.weight, self.config.temperature

        def loss(logits: Tensor, positions: slice) -> Tensor:
            device = logits.device
            here, rows = counted[positions].to(device), slice(before[positions.start], before[positions.stop])
            known = TopTokens(*(value[rows].to(device) for value in (teacher.index, teacher.log_probs, teacher.log_rest)))
            away = divergence(logits[here], known, temperature) * (weight * temperature**2)
            mixed = away.new_zeros(len(logits)).masked_scatter(here, away)
            if not self.config.beside:
                return mixed
            return mixed + (1 - weight) * cross_entropies(logits, flat[positions].to(device))

        return losses_in_parts(model, loss, **inputs).view_as(targets)

    def mean_loss(self, model: Any, labels: Tensor, **inputs: Any) -> Tensor:
        """Mean of :meth:`losses` over the counted tokens; nan where none is counted."""
        return self.losses(model, labels, **inputs).sum() / (labels[:, 1:] != IGNORED).sum()


def check_teacher(config: DistillationConfig, distillation: Distillation | None) -> None:
    """Refuses a recovery that distils without a teacher, or with one that was asked otherwise.

    Raises:
        ConfigurationError: if it does.
    """
    if config and distillation is None and config.teacher is None:
        raise ConfigurationError(
            "distillation: expected what adapruner.stages.teach returned of the dense model, got None; call it before the model is pruned, "
            "or name a teacher in recovery.distillation.teacher"
        )
    if distillation is not None and distillation.config != config:
        raise ConfigurationError(
            f"distillation: expected one made for {config}, got one for {distillation.config}; give both the same recovery"
        )


def training_loss(model: Any, distillation: Distillation | None, batch: dict[str, Tensor]) -> Tensor:
    """Mean loss per counted token of a batch: the cross entropy, or what the distillation mixes."""
    return mean_next_token_loss(model, **batch) if distillation is None else distillation.mean_loss(model, **batch)


def counted_tokens(batch: Any) -> int:
    """Predictions that count in the loss of a batch; 0 where it does not say, as batches of other Lightning projects need not.

    >>> counted_tokens({"labels": torch.tensor([[7, -100, 9, 4]])}), counted_tokens(torch.tensor([[7, 8]]))
    (2, 0)
    >>> counted_tokens({"labels": torch.tensor([1, 2])}), counted_tokens({"labels": [1, 2]})
    (0, 0)
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return int((labels[:, 1:] != IGNORED).sum()) if isinstance(labels, Tensor) and labels.ndim == 2 else 0
