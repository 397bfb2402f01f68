"""How long and how to search: everything under ``--pruning.search``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from adapruner.argument_checks import check_fields, check_seed
from adapruner.errors import ConfigurationError, nearest
from adapruner.search.objectives import ObjectiveConfig
from adapruner.search.samplers import SAMPLERS
from adapruner.search.space import SearchSpace
from adapruner.search.stoppers import STOPPERS

__all__ = ["ORDERS", "ObjectiveConfig", "RerankConfig", "SearchConfig"]


ORDERS: tuple[str, ...] = ("joint", "data_first", "metric_first")


@dataclass(frozen=True)
class RerankConfig:
    """Re-ranking of the best trials after reconstruction and recovery, where their order is often another."""

    candidates: int = 8
    """Trials that are reconstructed in the sequential form and measured; the best seed trial is always among them."""
    keep: float = 0.5
    """Part of them that goes on to the short recovery."""
    recovery_steps: int = 0
    """Optimizer steps of the short recovery; 0 decides after the reconstruction."""
    held_out: int = 0
    """Windows of the search split that are left to the re-ranking alone; 0: trials and re-ranking use the whole split. The best of
    many trials is partly the luckiest on its windows, the more so the fewer they are: raise ``data.search.samples`` by as many."""

    def __post_init__(self) -> None:
        check_fields(self, "search.rerank.")
        if self.candidates < 1 or self.recovery_steps < 0:
            got = f"{self.candidates} and {self.recovery_steps}"
            raise ConfigurationError(f"search.rerank: expected candidates of 1 or more and steps of 0 or more, got {got}; give 8 and 0")
        if self.held_out < 0:
            raise ConfigurationError(f"search.rerank.held_out: expected 0 or more windows, got {self.held_out}; give 0 for none")
        if not 0 < self.keep <= 1:
            raise ConfigurationError(f"search.rerank.keep: expected a fraction in (0, 1], got {self.keep}; give 0.5")


@dataclass(frozen=True)
class SearchConfig:
    """How long and how to search.

    >>> SearchConfig(n_trials=64, sampler="random").n_trials
    64
    """

    n_trials: int = 128
    """Trials in all, the seed trials included; below about 50 the sampler hardly learns."""
    sampler: str = "tpe"
    """``tpe``: Bayesian optimisation as in the paper; ``gp``: by a Gaussian process; ``cmaes``: CMA-ES, for spaces without
    choices among names (these it draws at random); ``random``: the ablation."""
    order: Literal["joint", "data_first", "metric_first"] = "joint"
    """``joint``: calibration and metric together; else one half of the trials for the one, then the other half for the other."""
    seed: int = 0
    """Seed of the sampler, of random sets and of clusters."""
    batch_size: int = 8
    """Windows in one forward pass of a trial."""
    chunks: int = 4
    """Parts of the search split between which a bad trial can stop."""
    early_stopping: str = "median"
    """Stop a bad trial between chunks (single process only): ``median``, worse than the median of earlier trials; ``wilcoxon``,
    worse than the best by a signed-rank test over chunks; ``halving``, not in the better half; ``none``."""
    max_failures: int = 5
    """Failed trials after which the search stops instead of going on."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is minimised."""
    rerank: RerankConfig | None = field(default_factory=RerankConfig)
    """Re-ranking of the best trials; null takes the best trial as it is."""
    random_sets: int = 8
    """Random sets of samples that the winner is compared with, to say how much the choice of samples matters; 0: none. Each
    costs a trial."""
    storage: str | None = None
    """URL of a storage through which unconnected machines work on one study, such as ``postgresql://user@host/name`` or
    ``grpc://host:13000``; null: the journal in the run folder. See docs/scaling.md for what it can promise."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """What is searched."""

    @property
    def held_out(self) -> int:
        """Windows of the search split that are left to the re-ranking."""
        return 0 if self.rerank is None else self.rerank.held_out

    @property
    def recovery_steps(self) -> int:
        """Optimizer steps of the short recovery in the re-ranking; 0 for none."""
        return 0 if self.rerank is None else self.rerank.recovery_steps

    def __post_init__(self) -> None:
        check_fields(self, "search.")
        check_seed("search.seed", self.seed)
        for name in ("n_trials", "batch_size", "chunks", "max_failures"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"search.{name}: expected 1 or more, got {getattr(self, name)}; give a positive number")
        if self.storage is not None and not re.fullmatch(r"grpc://[^/@]+:\d+|(?!grpc)[\w+]+://.+", self.storage):
            raise ConfigurationError(
                f"search.storage: expected a URL such as sqlite:///study.db or grpc://host:13000, got {self.storage!r}; correct it"
            )
        if self.random_sets < 0:
            raise ConfigurationError(f"search.random_sets: expected 0 or more, got {self.random_sets}; give 0 for none")
        sampler = SAMPLERS.find(self.sampler, "search.sampler")
        STOPPERS.find(self.early_stopping, "search.early_stopping")
        if self.order not in ORDERS:
            raise ConfigurationError(f"search.order: expected a known order, got {self.order!r}; {nearest(str(self.order), ORDERS)}")
        if self.objective.pareto and not (sampler.several_objectives and self.order == "joint"):
            raise ConfigurationError(
                f"search.objective.pareto: expected the sampler tpe, gp or random and order joint, got {self.sampler} and {self.order}; "
                "choose them, or one objective"
            )
