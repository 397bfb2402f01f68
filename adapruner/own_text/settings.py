"""How much text a model writes, and how it is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from adapruner.argument_checks import check_fields, check_seed, got
from adapruner.errors import ConfigurationError


@dataclass(frozen=True)
class Writing:
    """How much text, and how it is drawn.

    Raises:
        ConfigurationError: for a value out of range.

    >>> Writing(documents=0)
    Traceback (most recent call last):
    adapruner.errors.ConfigurationError: documents: expected 1 or more, got 0; give 640
    """

    documents: int = 640
    """How many, each with some text."""
    tokens: int = 256
    """Of a document at most; it ends before where the model says so."""
    temperature: float = 1.0
    """Logits are divided by it. 1: the model's own distribution, nothing cut from it."""
    batch_size: int = 32
    """Documents at a time."""
    seed: int = 0
    """Of what is drawn; with its number in the order it decides a document."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, usual in (("documents", 640), ("tokens", 256), ("batch_size", 32)):
            value = getattr(self, name)
            if value < 1:
                raise ConfigurationError(f"{name}: expected 1 or more, got {got(value)}; give {usual}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigurationError(
                f"temperature: expected a number above 0, got {got(self.temperature)}; give 1, the model's own distribution"
            )
        check_seed("seed", self.seed)

    @property
    def identity(self) -> dict[str, Any]:
        """What the documents depend on; their number only says where they end."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "documents"}
