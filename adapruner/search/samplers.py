"""Optuna's samplers by name, seeded anew for every trial, and its rules for stopping a bad trial."""

from __future__ import annotations

import warnings
from typing import Any

from adapruner.search.config import SearchConfig
from adapruner.search.space import CALIBRATION_DIMENSIONS


def make_sampler(config: SearchConfig, index: int, startup: int, fixed: dict[str, Any] | None = None) -> Any:
    """The sampler of trial ``index``. Its seed depends on nothing else, so that a resumed search asks what an unbroken one asks.

    Args:
        startup: trials before the sampler's model begins to count; drawn at random where none is enqueued.
        fixed: dimensions that do not move in this trial.
    """
    import optuna

    seed = config.seed * 100003 + index
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if config.sampler == "random":
            sampler: Any = optuna.samplers.RandomSampler(seed=seed)
        elif config.sampler == "gp":
            sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
        elif config.sampler == "cmaes":
            sampler = optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        else:
            options: dict[str, Any] = {} if config.objective.pareto else {"multivariate": True}
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True, **options)
        return optuna.samplers.PartialFixedSampler(fixed, sampler) if fixed else sampler


def make_stopper(config: SearchConfig, startup: int) -> Any:
    """Optuna's pruner of trials (not of models)."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if config.early_stopping == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=startup, n_min_trials=4)
        if config.early_stopping == "wilcoxon":
            return optuna.pruners.WilcoxonPruner(p_threshold=0.1)
        if config.early_stopping == "halving":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
        return optuna.pruners.NopPruner()


def frozen_dimensions(order: str, first_half: bool, values: dict[str, Any]) -> dict[str, Any] | None:
    """What stays where it was while one subspace is searched after the other; ``None`` where they are searched jointly.

    Args:
        values: the best trial so far.
    """
    if order == "joint":
        return None
    moves_data = (order == "data_first") == first_half
    return {name: value for name, value in values.items() if name.startswith(CALIBRATION_DIMENSIONS) != moves_data}
