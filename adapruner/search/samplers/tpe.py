"""Bayesian optimisation by tree-structured Parzen estimators, as AdaPruner (arXiv 2503.06184) searches. Watanabe, arXiv 2304.11127."""

from __future__ import annotations

from typing import Any

from adapruner.search.samplers import register_sampler


@register_sampler
class Tpe:
    """Multivariate TPE; trials that other ranks are running count as bad ones, so that they are not asked for twice."""

    name, several_objectives = "tpe", True

    def make(self, seed: int, startup: int, objectives: int) -> Any:
        import optuna

        options: dict[str, Any] = {"multivariate": True} if objectives == 1 else {}
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True, **options)
