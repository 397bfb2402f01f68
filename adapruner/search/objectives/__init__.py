"""What a trial is evaluated by: something measured on the search split, in nats per token; lower is better. One file each.

A user's own is a class like these, registered by the same decorator; ``--pruning.search.objective.measure NAME`` chooses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from adapruner.argument_checks import check_fields
from adapruner.errors import ConfigurationError, nearest
from adapruner.evaluation.perplexity import Windows
from adapruner.pruning.costs import COSTS
from adapruner.registry import Registry


class Measured(Protocol):
    """A measurement on the windows so far."""

    @property
    def value(self) -> float:
        """Mean over tokens."""

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""


class Measure(Protocol):
    """Something measured on the search split. One that has ``words`` is called by these in the report, else by its name."""

    name: str

    def prepare(self, dense: nn.Module, windows: Windows, options: ObjectiveConfig, batch_size: int) -> Any:
        """What :meth:`measure` needs of the dense model, collected once; ``None`` where that is nothing."""

    def measure(self, model: nn.Module, windows: Windows, prepared: Any, batch_size: int, chunks: int) -> Iterator[Measured]:
        """Measures a model on the windows ``[n, seq_len]`` in ``chunks`` parts; each result is about all windows so far."""


OBJECTIVES: Registry[Measure] = Registry("measure", __name__, "adapruner.objectives")
register_objective = OBJECTIVES.add_class


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a trial is evaluated by; lower is better.

    >>> ObjectiveConfig("kl", cost_weight=0.5).measure
    'kl'
    """

    measure: str = "nll"
    """On the search split: ``nll``, of the text; ``kl``, from the dense model's predictions. Nats per token."""
    top_k: int = 64
    """For ``kl``: tokens of the dense model's predictions kept at each position."""
    refit: Literal["auto", "always", "never"] = "auto"
    """Evaluate the model after the local refit of its output projections. ``auto``: where the run reconstructs and the Gram
    matrices fit into ``refit_gib``."""
    refit_gib: float = 2.0
    """Memory that the cached Gram matrices may take under ``auto``."""
    cost: str = "parameters"
    """What ``cost_weight`` and ``pareto`` count: the fraction left of ``parameters``, ``macs``, ``memory``, or of another unit of the
    budget that nothing has to be timed for."""
    cost_weight: float = 0.0
    """Added to the measure for each unit of the cost's fraction that is left, in nats."""
    pareto: bool = False
    """Search measure and cost as two objectives: the front goes into ``pareto.json``, its plans into ``plans/``."""

    def __post_init__(self) -> None:
        check_fields(self, "search.objective.")
        OBJECTIVES.find(self.measure, "search.objective.measure")
        costs = ("parameters", *(name for name in COSTS if not COSTS.find(name).timed))
        for argument, value, known in (("refit", self.refit, ("auto", "always", "never")), ("cost", self.cost, costs)):
            if value not in known:
                raise ConfigurationError(
                    f"search.objective.{argument}: expected a known {argument}, got {value!r}; {nearest(value, known)}"
                )
        if self.top_k < 1:
            raise ConfigurationError(f"search.objective.top_k: expected 1 or more, got {self.top_k}; give 64")
        for argument in ("cost_weight", "refit_gib"):
            if not 0 <= getattr(self, argument) < float("inf"):
                got = getattr(self, argument)
                raise ConfigurationError(f"search.objective.{argument}: expected a finite number of 0 or more, got {got}; give 0")
        if self.pareto and self.cost_weight:
            raise ConfigurationError(
                f"search.objective: expected pareto or a cost_weight, got both ({self.cost_weight}); set cost_weight to 0"
            )
