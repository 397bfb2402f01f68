"""What is searched: a calibration subspace and a metric subspace, together (AdaPruner, arXiv 2503.06184).

- Calibration: one logit per source of the pool (and per cluster); their softmax are the weights of the sources' samples.
  Off unless asked for: a drawn subset (its size and seed), the samples' length.
- Metric: one coefficient per metric of the mixture (values at or below 0 switch a metric off), the reduction over coupled
  tensors; fixed unless choices are given: the reduction over a head, the form of the mixture, the normaliser, its scope,
  bias compensation.
- Allocation: gamma, a multiplier for attention, a profile over depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from adapruner.argument_checks import check_between, check_fields
from adapruner.calibration.choice import CalibrationChoice
from adapruner.calibration.pool import CalibrationPool
from adapruner.errors import ConfigurationError, nearest
from adapruner.importance.metrics import find_metric
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.recipe import CHOICES, Recipe

DEFAULT_METRICS = ("l2", "taylor_vectorize", "taylor_second", "gate_fisher", "wanda_sp", "flap_wifv")

#: Dimensions that are a choice: field of the space -> field of the recipe.
_CHOICES = {f"{name}s": name for name in CHOICES}
#: Dimensions that are a number of the allocation: field of the space and of the allocation.
_ALLOCATION = ("gamma", "log_head_multiplier", "depth_slope", "depth_curve")
#: Dimensions that are there only where bounds are given -> their value in seed trials.
_OPTIONAL = {"log10_ridge": -1.0, "pruned_fraction": 0.0}
#: Largest bound of a dimension, also as an exponent of e or 10 within what double precision holds.
_MOST = 100.0
#: Dimensions of the calibration, by the beginnings of their names; every other dimension is the metric's or the allocation's.
CALIBRATION_DIMENSIONS = ("source/", "cluster/", "subset_size", "subset_seed", "seq_len")


@dataclass(frozen=True)
class Dimension:
    """One searched dimension: numbers from ``low`` to ``high``, or a choice."""

    name: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    """Whether the numbers are whole."""
    choices: Sequence[Any] = ()
    start: Any = None
    """Its value in seed trials, where they do not set it themselves."""

    def suggest(self, trial: Any) -> Any:
        """Asks an Optuna trial for a value."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        return (trial.suggest_int if self.whole else trial.suggest_float)(self.name, self.low, self.high)


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
    score_orders: list[str] = field(default_factory=lambda: ["reduce_first"])
    """Choices for what comes first, the reduction to units or the normaliser: ``reduce_first``, ``normalise_first``."""
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
    seq_lens: list[int] = field(default_factory=list)
    """Choices for the samples' length in tokens, of the pool's own lengths; empty: the first."""
    coefficient_off: float = 0.25
    """Coefficients lie in [-coefficient_off, 1] and count as 0 below 0: how easily a metric drops out."""
    gamma: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Lower and upper bound of gamma."""
    log_head_multiplier: list[float] = field(default_factory=lambda: [-1.5, 1.5])
    """Lower and upper bound of the natural logarithm of the factor on attention scores."""
    depth_slope: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Bounds of ``Allocation.depth_slope``: above 0 late layers lose more, below 0 early ones."""
    depth_curve: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Bounds of ``Allocation.depth_curve``: above 0 both ends lose more, below 0 the middle."""
    allocation: Allocation = field(default_factory=Allocation)
    """What is not searched of the allocation: its method, uniform heads, rounded widths."""
    pruned_fraction: list[float] | None = None
    """Bounds of the removed fraction, where the size is searched too (``objective.pareto``); null: the budget's."""
    log10_ridge: list[float] | None = None
    """Bounds of log10 of the reconstruction's relative strength; null: the configured strength."""

    def __post_init__(self) -> None:
        check_fields(self, "search.space.")
        if not self.metrics:
            raise ConfigurationError("search.space.metrics: expected at least one metric, got none; name one, such as l2")
        for name in self.metrics:
            find_metric(name, "search.space.metrics")
        for argument, name in _CHOICES.items():
            chosen, known = getattr(self, argument), CHOICES[name]
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
            for bound in bounds:
                check_between(f"search.space.{argument}", bound, -_MOST, _MOST)
        for argument in ("source_logit", "cluster_logit", "coefficient_off"):
            if not 0 <= getattr(self, argument) < math.inf:
                got = getattr(self, argument)
                raise ConfigurationError(f"search.space.{argument}: expected a number of 0 or more, got {got}; give 0 to switch it off")
        for argument in ("source_logit", "cluster_logit", "coefficient_off"):
            check_between(f"search.space.{argument}", getattr(self, argument), 0, _MOST)
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
        size = max(self.subset_sizes, default=0)
        if size > pool.samples:
            raise ConfigurationError(f"search.space.subset_sizes: expected at most {pool.samples} samples, got {size}; enlarge the pool")

    def dimensions(self, pool: CalibrationPool) -> list[Dimension]:
        """Every dimension that is searched on this pool."""
        found = [Dimension(f"metric/{m}", -self.coefficient_off, 1.0) for m in self.metrics]
        found += [Dimension(f"{kind}/{n}", -bound, bound, start=0.0) for kind, names, bound in self._weighted(pool) for n in names]
        if len(self.subset_sizes) > 1:
            found.append(Dimension("subset_size", choices=self.subset_sizes, start=max(self.subset_sizes)))
        if len(self.seq_lens) > 1:
            found.append(Dimension("seq_len", choices=self.seq_lens, start=self.seq_lens[0]))
        if self.subset_sizes and self.subset_seeds > 1:
            found.append(Dimension("subset_seed", 0, self.subset_seeds - 1, whole=True, start=0))
        for argument, name in _CHOICES.items():
            choices = getattr(self, argument)
            if len(choices) > 1:
                found.append(Dimension(name, choices=choices, start=choices[0]))
        for name, usual in {**dict.fromkeys(_ALLOCATION, 0.0), **_OPTIONAL}.items():
            low, high = getattr(self, name) or (math.inf, -math.inf)
            if low < high or (low == high and not name.startswith("depth")):  # a depth profile of no width is not recorded
                found.append(Dimension(name, low, high, start=min(max(usual, low), high)))
        return found

    def suggest(self, trial: Any, pool: CalibrationPool) -> Recipe:
        """Asks an Optuna trial for every dimension and makes the recipe."""
        return self.recipe({dimension.name: dimension.suggest(trial) for dimension in self.dimensions(pool)})

    def _weighted(self, pool: CalibrationPool) -> list[tuple[str, tuple[str, ...], float]]:
        """Kinds of groups whose weights are searched: prefix, names, bound of the logits."""
        kinds = [("source", pool.sources.names, self.source_logit)]
        if pool.clusters is not None:
            kinds.append(("cluster", pool.clusters.names, self.cluster_logit))
        return [(prefix, names, bound) for prefix, names, bound in kinds if len(names) > 1 and bound > 0]

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe at a point of the space; where every metric is off, all of them count alike."""
        active = {m: max(0.0, values[f"metric/{m}"]) for m in self.metrics}
        if sum(active.values()) <= 0:
            active = dict.fromkeys(active, 1.0)
        sources, clusters = _by_prefix(values, "source/"), _by_prefix(values, "cluster/")
        calibration = CalibrationChoice(
            source_weights=softmax(sources) if sources else None,
            cluster_weights=softmax(clusters) if clusters else None,
            count=values.get("subset_size", next(iter(self.subset_sizes), None)),
            seed=values.get("subset_seed", 0),
            seq_len=values.get("seq_len", next(iter(self.seq_lens), None)),
        )
        return Recipe(
            coefficients=active,
            calibration=calibration,
            allocation=replace(self.allocation, **{name: values.get(name, getattr(self, name)[0]) for name in _ALLOCATION}),
            pruned_fraction=values.get("pruned_fraction"),
            ridge=10.0 ** values["log10_ridge"] if "log10_ridge" in values else None,
            **{name: values.get(name, getattr(self, argument)[0]) for argument, name in _CHOICES.items()},
        )

    def point(self, pool: CalibrationPool, metric: str, source: str | None = None) -> dict[str, Any]:
        """The point of this space that is a plain metric, over the whole pool or on one source, in one global ranking."""
        point = {dimension.name: dimension.start for dimension in self.dimensions(pool)}
        point |= {f"metric/{m}": 1.0 if m == metric else -self.coefficient_off for m in self.metrics}
        if source is not None:
            point |= {f"source/{n}": self.source_logit if n == source else -self.source_logit for n in pool.sources.names}
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
