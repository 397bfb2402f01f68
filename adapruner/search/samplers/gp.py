"""Bayesian optimisation by a Gaussian process."""

from __future__ import annotations

from typing import Any

from adapruner.search.samplers import register_sampler


@register_sampler
class GaussianProcess:
    """A Gaussian process for a value without noise: the same recipe has the same value."""

    name, several_objectives = "gp", True

    def make(self, seed: int, startup: int, objectives: int) -> Any:
        import optuna

        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
