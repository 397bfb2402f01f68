"""Independent uniform draws: the ablation of the search."""

from __future__ import annotations

from typing import Any

from adapruner.search.samplers import register_sampler


@register_sampler
class Random:
    """Uniform draws."""

    name, several_objectives = "random", True

    def make(self, seed: int, startup: int, objectives: int) -> Any:
        import optuna

        return optuna.samplers.RandomSampler(seed=seed)
