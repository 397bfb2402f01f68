"""The settings of learned gates: everything under ``--pruning.gates``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from adapruner.argument_checks import check_fields, check_seed
from adapruner.errors import ConfigurationError
from adapruner.recovery.distillation import DistillationConfig


@dataclass(frozen=True)
class GatesConfig:
    """How long and by which loss the units of the search's winner are exchanged for others (:mod:`adapruner.search.learned_gates`).

    >>> bool(GatesConfig()), bool(GatesConfig(steps=60))
    (False, True)
    """

    steps: int = 0
    """Optimizer steps; 0: no gates, the search's winner is the plan."""
    learning_rate: float = 0.02
    """Of Adam, on the gates' logits."""
    batch_size: int = 8
    """Windows in a step, of all processes together."""
    look_every: int = 20
    """Steps between two looks at the held-out windows; the units with the lowest loss there become the plan, those of the search among
    them. What a killed run had at its last look is gone on from."""
    divergence: float = 1.0
    """Share of the divergence from the dense model in the loss, in [0, 1]; the rest is the cross entropy of the text itself, by which the
    gates also learn the text's style, which a recovery would have taught anyway."""
    top_k: int = 32
    """The dense model's most likely tokens that are kept at each position; the others count as one. 8 bytes each."""
    seed: int = 0
    """Of the order in which windows are read."""

    def __post_init__(self) -> None:
        check_fields(self, "gates.")
        check_seed("gates.seed", self.seed)
        if self.steps < 0:
            raise ConfigurationError(f"gates.steps: expected 0 or more, got {self.steps}; give 60, or 0 for none")
        for name in ("batch_size", "look_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"gates.{name}: expected 1 or more, got {getattr(self, name)}; give a positive number")
        if self.top_k < 1:
            raise ConfigurationError(f"gates.top_k: expected 1 or more, got {self.top_k}; give 32")
        if not 0 <= self.divergence <= 1:
            raise ConfigurationError(f"gates.divergence: expected a number in [0, 1], got {self.divergence}; give 1.0")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigurationError(f"gates.learning_rate: expected a positive number, got {self.learning_rate}; give 0.02")

    def __bool__(self) -> bool:
        """Whether gates are learned."""
        return self.steps > 0

    @property
    def loss(self) -> DistillationConfig:
        """The loss as a recovery that distils has it."""
        return DistillationConfig(self.divergence, top_k=self.top_k, batch_size=self.batch_size)

    def check_vocabulary(self, vocabulary: int) -> None:
        """Refuses more kept tokens than the model has.

        Raises:
            ConfigurationError: if there are fewer.
        """
        if self and self.divergence and self.top_k > vocabulary:
            raise ConfigurationError(f"gates.top_k: expected at most {vocabulary}, the vocabulary, got {self.top_k}; give 32")

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)
