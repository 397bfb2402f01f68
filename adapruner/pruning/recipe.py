"""The recipe: everything that decides which units go, given the statistics of a model and a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from adapruner.argument_checks import check_fields
from adapruner.calibration.choice import CalibrationChoice
from adapruner.errors import ConfigurationError, nearest
from adapruner.importance.metrics import find_metric
from adapruner.importance.mixture import FORMS, SCORE_ORDERS
from adapruner.importance.normalisation import NORMALISERS, SCOPES
from adapruner.importance.reduction import HEAD_REDUCTIONS, MEMBER_REDUCTIONS
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.bias_compensation import NEEDS as BIAS_NEEDS

#: Fields of a recipe that are a choice -> what may be chosen.
CHOICES: dict[str, Sequence[Any]] = {
    "reduction": tuple(MEMBER_REDUCTIONS),
    "head_reduction": tuple(HEAD_REDUCTIONS),
    "form": FORMS,
    "normaliser": tuple(NORMALISERS),
    "scope": SCOPES,
    "score_order": SCORE_ORDERS,
    "bias_compensation": (False, True),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which units go, given the statistics and a budget.

    >>> sorted(Recipe({"l2": 0.5, "wanda_sp": 0.5}).needs)
    ['input_square_sum']
    """

    coefficients: dict[str, float] = field(default_factory=lambda: {"l2": 1.0})
    """Metric name -> weight in the log-linear mixture; scaled to sum 1."""
    calibration: CalibrationChoice = field(default_factory=CalibrationChoice)
    """The weights of the calibration samples."""
    reduction: str = "sum"
    """Over coupled tensors: sum, mean, max, prod, first."""
    head_reduction: str = "sum"
    """Over a head's channels: sum, mean, max."""
    form: str = "log"
    """How metrics are mixed: ``log``, a weighted geometric mean; ``additive``, a weighted sum."""
    normaliser: str = "mean"
    """Brings each metric to a common scale first: none, sum, mean, max, standardise, rank, per_parameter."""
    scope: str = "model"
    """What a normaliser looks at: the whole ``model``, or each ``layer``'s attention and FFN by itself."""
    score_order: str = "reduce_first"
    """``reduce_first`` normalises scores of units; ``normalise_first`` those of channels, before the reduction over a head, as FLAP
    does (arXiv 2312.11983)."""
    sequential: bool = False
    """Measure each layer's inputs after the earlier layers were pruned, as Wanda-sp's published code does; for the allocation
    ``uniform`` and metrics of inputs. Not for a search."""
    bias_compensation: bool = False
    """Add back the mean of what is removed, as a bias of the output projection (FLAP, arXiv 2312.11983)."""
    pruned_fraction: float | None = None
    """Goes before the budget's, where sizes are searched too; ``None``: the budget's."""
    ridge: float | None = None
    """Strength of the refit's ridge, the same for all projections; ``None``: as configured there."""
    allocation: Allocation = field(default_factory=Allocation)

    def __post_init__(self) -> None:
        check_fields(self, "recipe.")
        if not self.coefficients or not all(0 <= c < math.inf for c in self.coefficients.values()) or not any(self.coefficients.values()):
            raise ConfigurationError(
                f"recipe.coefficients: expected metrics with weights of 0 or more, one above 0, got {self.coefficients}; give l2: 1.0"
            )
        for name in self.coefficients:
            find_metric(name, "recipe.coefficients")
        for argument, known in CHOICES.items():
            value = getattr(self, argument)
            if value not in known:
                hint = nearest(str(value), map(str, known))
                raise ConfigurationError(f"recipe.{argument}: expected a known {argument}, got {value!r}; {hint}")
        if self.pruned_fraction is not None and not 0 <= self.pruned_fraction < 1:
            raise ConfigurationError(f"recipe.pruned_fraction: expected a number in [0, 1), got {self.pruned_fraction}; leave it null")
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise ConfigurationError(f"recipe.ridge: expected a positive number, got {self.ridge}; leave it null")

        if self.sequential and (self.allocation.method != "uniform" or not self.needs <= {"input_sum", "input_square_sum"}):
            got = f"{self.allocation.method!r} and {', '.join(self.coefficients)}"
            raise ConfigurationError(
                f"recipe.sequential: expected the allocation 'uniform' and metrics of inputs alone, got {got}; take wanda_sp, or give false"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    @property
    def needs(self) -> frozenset[str]:
        """Statistics its metrics and its bias compensation ask for."""
        needs = frozenset().union(*(find_metric(name).needs for name in self.coefficients))
        return needs | BIAS_NEEDS if self.bias_compensation else needs
