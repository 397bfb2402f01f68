"""Independent uniform draws: the ablation of the search."""

from __future__ import annotations

from typing import Any

from adapruner.search.samplers import register_sampler


@register_sampler
class Random:
    """Uniform draws."""

    name = "random"
    several_objectives = True

    def make(self, seed: int, startup: int, objectives: int) -> Any:
        """See :meth:`Sampler.make`."""
        import optuna

        return optuna.samplers.RandomSampler(seed=seed)
