"""What is searched: a calibration subspace and a metric subspace, together (AdaPruner, arXiv 2503.06184).

- Calibration: one logit per source of the pool (and per cluster); their softmax shares out how much the samples of each
  speak. Off unless asked for: a drawn subset (its size and seed), samples by position, the samples' length.
- Metric: one coefficient per metric of the mixture (values at or below 0 switch a metric off), the reduction over coupled
  tensors; fixed unless choices are given: the reduction over a head, the form of the mixture, the normaliser, its scope,
  bias compensation.
- Allocation: gamma, a multiplier for attention (study.md of the design, "Allocation"), a lean towards early or late layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationPool
from adapruner.errors import ConfigurationError, nearest
from adapruner.importance.metrics import find_metric
from adapruner.importance.mixture import FORMS
from adapruner.importance.normalisation import NORMALISERS
from adapruner.importance.reduction import HEAD_REDUCTIONS, MEMBER_REDUCTIONS
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.recipe import Recipe

DEFAULT_METRICS = ("l2", "taylor_vectorize", "taylor_second", "gate_fisher", "wanda_sp", "flap_wifv")

#: Dimensions that are a choice among names: field of the space -> (field of the recipe, what may be chosen).
_CHOICES: dict[str, tuple[str, Sequence[Any]]] = {
    "reductions": ("reduction", tuple(MEMBER_REDUCTIONS)),
    "head_reductions": ("head_reduction", tuple(HEAD_REDUCTIONS)),
    "forms": ("form", FORMS),
    "normalisers": ("normaliser", tuple(NORMALISERS)),
    "scopes": ("scope", ("model", "layer")),
    "bias_compensations": ("bias_compensation", (False, True)),
}
#: Dimensions that are a number of the allocation: field of the space and of the allocation.
_ALLOCATION = ("gamma", "log_head_multiplier", "depth_slope", "depth_curve")
#: Dimensions that are there only where bounds are given -> the value of the fixed points.
_OPTIONAL = {"log10_ridge": -2.0, "pruned_fraction": 0.0}
#: Dimensions of the calibration, by the beginnings of their names; every other dimension is the metric's or the allocation's.
CALIBRATION_DIMENSIONS = ("source/", "cluster/", "subset_size", "subset_seed", "pick/", "seq_len")


class Suggests(Protocol):
    """The part of an Optuna trial that the space needs."""

    def suggest_float(self, name: str, low: float, high: float) -> float: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class SearchSpace:
    """Bounds of every searched dimension; a bound of zero width, or a list of one choice, fixes the dimension.

    >>> SearchSpace(metrics=["l2", "taylor_second"], seq_lens=[128, 512]).metrics
    ['l2', 'taylor_second']
    """

    metrics: list[str] = field(default_factory=lambda: list(DEFAULT_METRICS))
    """Metrics of the mixture."""
    reductions: list[str] = field(default_factory=lambda: ["sum", "max"])
    """Choices for the reduction over coupled tensors."""
    head_reductions: list[str] = field(default_factory=lambda: ["sum"])
    """Choices for the reduction over a head's channels: sum, mean, max."""
    forms: list[str] = field(default_factory=lambda: ["log"])
    """Choices for the form of the mixture: ``log``, ``additive``."""
    normalisers: list[str] = field(default_factory=lambda: ["mean"])
    """Choices for the normaliser of each metric: none, sum, mean, max, standardise, rank, per_parameter."""
    scopes: list[str] = field(default_factory=lambda: ["model"])
    """Choices for what a normaliser looks at: ``model``, ``layer``."""
    bias_compensations: list[bool] = field(default_factory=lambda: [False])
    """Choices for adding back the mean of what is removed, as a bias."""
    source_logit: float = 3.0
    """Logits of source weights lie in [-source_logit, source_logit]; 0 gives all sources the same weight, unsearched."""
    cluster_logit: float = 3.0
    """The same for the weights of clusters, where the pool has some (``data.calibration.clusters``)."""
    subset_sizes: list[int] = field(default_factory=list)
    """Choices for how many samples are drawn, at the odds of their weights; empty: the whole pool, weighted."""
    subset_seeds: int = 1
    """Number of seeds that a drawn subset chooses among."""
    picks: int = 0
    """Search so many samples by their position in the pool; 0: none. (Positions are hard to learn; study.md, item 2.)"""
    seq_lens: list[int] = field(default_factory=list)
    """Choices for the samples' length in tokens, of the pool's own lengths; empty: the first."""
    coefficient_off: float = 0.25
    """Coefficients lie in [-coefficient_off, 1] and count as 0 below 0: how easily a metric drops out."""
    gamma: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Lower and upper bound of gamma."""
    log_head_multiplier: list[float] = field(default_factory=lambda: [-1.5, 1.5])
    """Lower and upper bound of the natural logarithm of the factor on attention scores."""
    depth_slope: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Bounds of the lean: above 0 late layers lose more, below 0 early ones (``Allocation.depth_slope``)."""
    depth_curve: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Bounds of the other lean: above 0 both ends lose more, below 0 the middle (``Allocation.depth_curve``)."""
    allocation: Allocation = field(default_factory=Allocation)
    """What is not searched of the allocation: its method, uniform heads, rounded widths."""
    pruned_fraction: list[float] | None = None
    """Bounds of the removed fraction, where the size is searched too (``objective.pareto``); null: the budget's."""
    log10_ridge: list[float] | None = None
    """Bounds of log10 of the reconstruction's relative strength; null: the configured strength."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigurationError("search.space.metrics: expected at least one metric, got none; name one, such as l2")
        for name in self.metrics:
            find_metric(name)
        for argument, (_, known) in _CHOICES.items():
            chosen = getattr(self, argument)
            unknown = [c for c in chosen if c not in known]
            if unknown or not chosen:
                got = unknown[0] if unknown else "none"
                hint = nearest(str(got), map(str, known))
                raise ConfigurationError(f"search.space.{argument}: expected known {argument}, got {got!r}; {hint}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        ranges = {name: getattr(self, name) for name in _ALLOCATION}
        ranges |= {name: getattr(self, name) for name in _OPTIONAL if getattr(self, name) is not None}
        for argument, bounds in ranges.items():
            if len(bounds) != 2 or not -math.inf < bounds[0] <= bounds[1] < math.inf:
                raise ConfigurationError(f"search.space.{argument}: expected [low, high] with low <= high, got {bounds}; give two numbers")
        for argument in ("source_logit", "cluster_logit", "coefficient_off", "picks"):
            if not 0 <= getattr(self, argument) < math.inf:
                got = getattr(self, argument)
                raise ConfigurationError(f"search.space.{argument}: expected a number of 0 or more, got {got}; give 0 to switch it off")
        for argument, values, least in (
            ("subset_sizes", self.subset_sizes, 1),
            ("seq_lens", self.seq_lens, 2),
            ("subset_seeds", [self.subset_seeds], 1),
        ):
            if any(value < least for value in values):
                raise ConfigurationError(f"search.space.{argument}: expected {least} or more, got {min(values)}; correct it")

    def check_pool(self, pool: CalibrationPool, lengths: Sequence[int]) -> None:
        """Refuses what this pool cannot give, before anything is scored.

        Args:
            lengths: the lengths in tokens that the pool was cut at.

        Raises:
            ConfigurationError: for a length or a subset that the pool does not have.
        """
        missing = [n for n in self.seq_lens if n not in lengths]
        if missing:
            known = ", ".join(map(str, lengths))
            raise ConfigurationError(
                f"search.space.seq_lens: expected lengths of the pool ({known}), got {missing[0]}; add it to other_seq_lens"
            )
        for argument, size in (("subset_sizes", max(self.subset_sizes, default=0)), ("picks", self.picks)):
            if size > pool.samples:
                raise ConfigurationError(f"search.space.{argument}: expected at most {pool.samples} samples, got {size}; enlarge the pool")

    def suggest(self, trial: Suggests, pool: CalibrationPool) -> Recipe:
        """Asks a trial for every dimension and makes the recipe."""
        values: dict[str, Any] = {f"metric/{m}": trial.suggest_float(f"metric/{m}", -self.coefficient_off, 1.0) for m in self.metrics}
        values |= self._suggest_calibration(trial, pool)
        for argument, (name, _) in _CHOICES.items():
            choices = getattr(self, argument)
            values[name] = trial.suggest_categorical(name, list(choices)) if len(choices) > 1 else choices[0]
        for name in _ALLOCATION:
            low, high = getattr(self, name)
            fixed = low == high and name.startswith("depth")  # the first two are always recorded
            values[name] = low if fixed else trial.suggest_float(name, low, high)
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                values[name] = trial.suggest_float(name, *getattr(self, name))
        return self.recipe(values)

    def _suggest_calibration(self, trial: Suggests, pool: CalibrationPool) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for prefix, names, bound in self._weighted(pool):
            values |= {f"{prefix}/{n}": trial.suggest_float(f"{prefix}/{n}", -bound, bound) for n in names}
        for name, choices in (("subset_size", self.subset_sizes), ("seq_len", self.seq_lens)):
            if choices:
                values[name] = trial.suggest_categorical(name, list(choices)) if len(choices) > 1 else choices[0]
        if self.subset_sizes and self.subset_seeds > 1:
            values["subset_seed"] = trial.suggest_int("subset_seed", 0, self.subset_seeds - 1)
        values |= {f"pick/{i}": trial.suggest_int(f"pick/{i}", 0, pool.samples - 1) for i in range(self.picks)}
        return values

    def _weighted(self, pool: CalibrationPool) -> list[tuple[str, tuple[str, ...], float]]:
        """Kinds of groups whose weights are searched: prefix, names, bound of the logits."""
        kinds = [("source", pool.sources.names, self.source_logit)]
        if pool.clusters is not None:
            kinds.append(("cluster", pool.clusters.names, self.cluster_logit))
        return [(prefix, names, bound) for prefix, names, bound in kinds if len(names) > 1 and bound > 0]

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """A recipe from the values of all dimensions; where every metric is off, all of them speak alike."""
        active = {m: max(0.0, values[f"metric/{m}"]) for m in self.metrics}
        if sum(active.values()) <= 0:
            active = dict.fromkeys(active, 1.0)
        sources, clusters = _by_prefix(values, "source/"), _by_prefix(values, "cluster/")
        picks = sorted(set(_by_prefix(values, "pick/").values()))
        calibration = CalibrationChoice(
            source_weights=softmax(sources) if sources else None,
            cluster_weights=softmax(clusters) if clusters else None,
            samples=picks or None,
            count=values.get("subset_size"),
            seed=values.get("subset_seed", 0),
            seq_len=values.get("seq_len"),
        )
        return Recipe(
            coefficients=active,
            calibration=calibration,
            allocation=replace(self.allocation, **{name: values[name] for name in _ALLOCATION if name in values}),
            pruned_fraction=values.get("pruned_fraction"),
            ridge=10.0 ** values["log10_ridge"] if "log10_ridge" in values else None,
            **{name: values[name] for name, _ in _CHOICES.values() if name in values},
        )

    def point(self, pool: CalibrationPool, metric: str, source: str | None = None) -> dict[str, Any]:
        """The point of this space that is a plain metric, over the whole pool or on one source, in one global ranking."""
        point: dict[str, Any] = {f"metric/{m}": 1.0 if m == metric else -self.coefficient_off for m in self.metrics}
        for prefix, names, bound in self._weighted(pool):
            only = source if prefix == "source" else None
            point |= {f"{prefix}/{n}": 0.0 if only is None else (bound if n == only else -bound) for n in names}
        if len(self.subset_sizes) > 1:
            point["subset_size"] = max(self.subset_sizes)
        if self.subset_sizes and self.subset_seeds > 1:
            point["subset_seed"] = 0
        if len(self.seq_lens) > 1:
            point["seq_len"] = self.seq_lens[0]
        point |= {f"pick/{i}": round(i * (pool.samples - 1) / max(1, self.picks - 1)) for i in range(self.picks)}
        point |= {name: getattr(self, a)[0] for a, (name, _) in _CHOICES.items() if len(getattr(self, a)) > 1}
        for name in _ALLOCATION:
            low, high = getattr(self, name)
            if low < high or not name.startswith("depth"):
                point[name] = min(max(0.0, low), high)
        for name, usual in _OPTIONAL.items():
            bounds = getattr(self, name)
            if bounds is not None:
                point[name] = min(max(usual, bounds[0]), bounds[1])
        return point

    def searches_sources(self, pool: CalibrationPool) -> bool:
        """Whether sources have weights of their own."""
        return any(prefix == "source" for prefix, _, _ in self._weighted(pool))

    def to_dict(self) -> dict[str, Any]:
        """JSON types only, for the study's identity."""
        return asdict(self)


def frozen_dimensions(order: str, first_half: bool, values: dict[str, Any]) -> dict[str, Any] | None:
    """What stays where it was while one subspace is searched after the other; ``None`` where they are searched jointly.

    Args:
        values: the best trial so far.
    """
    if order == "joint":
        return None
    searches_data = (order == "data_first") == first_half
    return {name: value for name, value in values.items() if name.startswith(CALIBRATION_DIMENSIONS) != searches_data}


def _by_prefix(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def softmax(logits: Mapping[str, float]) -> dict[str, float]:
    """Weights with sum 1.

    >>> softmax({"books": 0.0, "wiki": 0.0})
    {'books': 0.5, 'wiki': 0.5}
    """
    top = max(logits.values())
    exponentials = {name: math.exp(value - top) for name, value in logits.items()}
    total = sum(exponentials.values())
    return {name: value / total for name, value in exponentials.items()}
