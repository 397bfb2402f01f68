"""CMA-ES, an evolution strategy for numbers (Hansen, arXiv 1604.00772)."""

from __future__ import annotations

from typing import Any

from adapruner.search.samplers import register_sampler


@register_sampler
class CmaEs:
    """For spaces without choices among names: these it draws at random."""

    name, several_objectives = "cmaes", False

    def make(self, seed: int, startup: int, objectives: int) -> Any:
        import optuna

        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
