"""What is searched: a calibration subspace and a metric subspace, together (AdaPruner, arXiv 2503.06184).

- Calibration: one logit per source of the pool; their softmax shares out how much each source's samples speak.
- Metric: one coefficient per metric of the mixture (values at or below 0 switch a metric off), the reduction over coupled
  tensors, the form of the mixture, the normaliser and its scope (the last three fixed unless choices are given).
- Allocation: gamma and a multiplier for attention (study.md of the design, "Allocation").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from adapruner.calibration.choice import CalibrationChoice
from adapruner.errors import ConfigurationError, nearest
from adapruner.importance.metrics import find_metric
from adapruner.importance.mixture import FORMS
from adapruner.importance.normalisation import NORMALISERS
from adapruner.importance.reduction import MEMBER_REDUCTIONS
from adapruner.pipeline import Recipe
from adapruner.pruning.allocation import Allocation

DEFAULT_METRICS = ("l2", "taylor_vectorize", "taylor_second", "gate_fisher", "wanda_sp", "flap_wifv")


#: Dimensions that are a choice among names: the field ``<name>s`` of the space, the field ``<name>`` of the recipe.
_CHOSEN = ("reduction", "form", "normaliser", "scope")
_CHOICES: dict[str, Sequence[str]] = {
    "reductions": tuple(MEMBER_REDUCTIONS),
    "forms": FORMS,
    "normalisers": tuple(NORMALISERS),
    "scopes": ("model", "layer"),
}


class Suggests(Protocol):
    """The part of an Optuna trial that the space needs."""

    def suggest_float(self, name: str, low: float, high: float) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class SearchSpace:
    """Bounds of every searched dimension; a bound of zero width fixes the dimension."""

    metrics: list[str] = field(default_factory=lambda: list(DEFAULT_METRICS))
    """Metrics of the mixture."""
    reductions: list[str] = field(default_factory=lambda: ["sum", "max"])
    """Choices for the reduction over coupled tensors."""
    forms: list[str] = field(default_factory=lambda: ["log"])
    """Choices for the form of the mixture: ``log``, ``additive``."""
    normalisers: list[str] = field(default_factory=lambda: ["mean"])
    """Choices for the normaliser of each metric: none, sum, mean, max, standardise, rank, per_parameter."""
    scopes: list[str] = field(default_factory=lambda: ["model"])
    """Choices for what a normaliser looks at: ``model``, ``layer``."""
    source_logit: float = 3.0
    """Logits of source weights lie in [-source_logit, source_logit]; 0 gives all sources the same weight, unsearched."""
    coefficient_off: float = 0.25
    """Coefficients lie in [-coefficient_off, 1] and count as 0 below 0: how easily a metric drops out."""
    gamma: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Lower and upper bound of gamma."""
    log_head_multiplier: list[float] = field(default_factory=lambda: [-1.5, 1.5])
    """Lower and upper bound of the natural logarithm of the factor on attention scores."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigurationError("search.space.metrics: expected at least one metric, got none; name one, such as l2")
        for name in self.metrics:
            find_metric(name)
        for argument, known in _CHOICES.items():
            chosen = getattr(self, argument)
            unknown = [c for c in chosen if c not in known]
            if unknown or not chosen:
                got = unknown[0] if unknown else "none"
                raise ConfigurationError(f"search.space.{argument}: expected known {argument}, got {got!r}; {nearest(got, known)}")
        for argument, bounds in (("gamma", self.gamma), ("log_head_multiplier", self.log_head_multiplier)):
            if len(bounds) != 2 or not -math.inf < bounds[0] <= bounds[1] < math.inf:
                raise ConfigurationError(f"search.space.{argument}: expected [low, high] with low <= high, got {bounds}; give two numbers")
        for argument, value in (("source_logit", self.source_logit), ("coefficient_off", self.coefficient_off)):
            if not 0 <= value < math.inf:
                raise ConfigurationError(f"search.space.{argument}: expected a number of 0 or more, got {value}; give 0 to switch it off")

    def suggest(self, trial: Suggests, sources: Sequence[str]) -> Recipe:
        """Asks a trial for every dimension and makes the recipe."""
        coefficients = {m: trial.suggest_float(f"metric/{m}", -self.coefficient_off, 1.0) for m in self.metrics}
        logits = None
        if self._searches_sources(sources):
            logits = {s: trial.suggest_float(f"source/{s}", -self.source_logit, self.source_logit) for s in sources}
        choices = {name: self._choose(trial, name, getattr(self, f"{name}s")) for name in _CHOSEN}
        gamma = trial.suggest_float("gamma", *self.gamma)
        multiplier = trial.suggest_float("log_head_multiplier", *self.log_head_multiplier)
        return self.recipe({**choices, "gamma": gamma, "log_head_multiplier": multiplier}, coefficients, logits)

    def recipe(self, rest: Mapping[str, Any], coefficients: Mapping[str, float], logits: Mapping[str, float] | None) -> Recipe:
        """A recipe from raw values; where every metric is off, all of them speak alike."""
        active = {m: max(0.0, c) for m, c in coefficients.items()}
        if sum(active.values()) <= 0:
            active = dict.fromkeys(active, 1.0)
        return Recipe(
            coefficients=active,
            calibration=CalibrationChoice(source_weights=None if logits is None else softmax(logits)),
            allocation=Allocation("gamma", rest["gamma"], rest["log_head_multiplier"]),
            **{name: rest[name] for name in _CHOSEN if name in rest},
        )

    def fixed_points(self, sources: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """The published fixed choices as points of this space: tried first, so the search never ends below them.

        Every metric alone over the whole pool, then the last Taylor metric of the space on each source alone.
        """
        points = [(name, self._point(name, sources, None)) for name in self.metrics]
        if self._searches_sources(sources):
            lead = next((m for m in ("taylor_second", "taylor_vectorize", "wanda_sp") if m in self.metrics), self.metrics[0])
            points += [(f"{lead} on {source}", self._point(lead, sources, source)) for source in sources]
        return points

    def _point(self, metric: str, sources: Sequence[str], only: str | None) -> dict[str, Any]:
        point: dict[str, Any] = {f"metric/{m}": 1.0 if m == metric else -self.coefficient_off for m in self.metrics}
        if self._searches_sources(sources):
            high = self.source_logit
            point |= {f"source/{s}": 0.0 if only is None else (high if s == only else -high) for s in sources}
        point |= {name: getattr(self, f"{name}s")[0] for name in _CHOSEN if len(getattr(self, f"{name}s")) > 1}
        point["gamma"] = self.gamma[0]
        point["log_head_multiplier"] = min(max(0.0, self.log_head_multiplier[0]), self.log_head_multiplier[1])
        return point

    def _choose(self, trial: Suggests, name: str, choices: list[str]) -> Any:
        return trial.suggest_categorical(name, list(choices)) if len(choices) > 1 else choices[0]

    def _searches_sources(self, sources: Sequence[str]) -> bool:
        return self.source_logit > 0 and len(sources) > 1

    def to_dict(self) -> dict[str, Any]:
        """JSON types only: part of what identifies a study."""
        return asdict(self)


def softmax(logits: Mapping[str, float]) -> dict[str, float]:
    """Weights with sum 1.

    >>> softmax({"books": 0.0, "wiki": 0.0})
    {'books': 0.5, 'wiki': 0.5}
    """
    top = max(logits.values())
    exponentials = {name: math.exp(value - top) for name, value in logits.items()}
    total = sum(exponentials.values())
    return {name: value / total for name, value in exponentials.items()}
