"""The value of a trial: measured on the search split at the trial's own widths, refitted or not, with a cost term or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from adapruner.evaluation.perplexity import Windows
from adapruner.freed_memory import give_back_freed_memory
from adapruner.importance.finiteness import find_bad_loss
from adapruner.models.forward import evaluation_mode
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem
from adapruner.pruning.recipe import Recipe
from adapruner.recovery.configuration import Ridge
from adapruner.recovery.post_pruning import trial_model
from adapruner.search.config import SearchConfig
from adapruner.search.objectives import OBJECTIVES, Measured


@dataclass(frozen=True)
class Part:
    """A measurement after one chunk of the search split."""

    value: float
    """Over all chunks so far, cost term included."""
    alone: float
    """Over this chunk alone."""


class Objective:
    """The measure on some windows; what it needs of the dense model is collected once.

    Args:
        model: the dense model.
        windows: ``[n, seq_len]``.
        refit: ridge of the local refit inside the trial, or ``None``; the problem then holds Gram matrices.
    """

    def __init__(self, model: nn.Module, problem: PruningProblem, windows: Windows, config: SearchConfig, refit: Ridge | None) -> None:
        self.problem, self.windows, self.config, self.refit = problem, windows, config, refit
        self.measure = OBJECTIVES.find(config.objective.measure)
        self.prepared = self.measure.prepare(model, windows, config.objective, config.batch_size)

    def of_plan(self, model: nn.Module, plan: PruningPlan, recipe: Recipe) -> Iterator[Part]:
        """The value of a plan after each chunk: the dense model is cut for the length of the measurement, and whole again afterwards."""
        addition = self.config.objective.cost_weight * self.cost(plan) if self.config.objective.cost_weight else 0.0
        try:
            with trial_model(model, self.problem, plan, recipe, self.refit):
                tokens, total = 0, 0.0
                for result in self._results(model, self.config.chunks):
                    alone = (result.value * result.tokens - total) / (result.tokens - tokens)
                    tokens, total = result.tokens, result.value * result.tokens
                    yield Part(result.value + addition, alone + addition)
        finally:  # stopped early, too: the next trial has other widths
            give_back_freed_memory()

    def locate_failure(self, model: nn.Module, plan: PruningPlan, recipe: Recipe) -> str:
        """Where a value that is not finite comes from: ``on the search split``, with the first such sample and layer if one shows it."""
        with trial_model(model, self.problem, plan, recipe, self.refit), evaluation_mode(model):
            found = find_bad_loss(model, {name: getattr(self.windows, name) for name in ("input_ids", "labels", "attention_mask")})
        if found is None:
            return "on the search split"
        return f"on sample {found[0]} of the search split, not finite from {found[1]} on"

    def of_model(self, model: nn.Module) -> float:
        """The value of a model as it is, without a cost term."""
        *_, result = self._results(model, 1)
        return float(result.value)

    def cost(self, plan: PruningPlan) -> float:
        """Fraction that the plan leaves of what ``objective.cost`` counts, in (0, 1]."""
        of = "all" if self.config.objective.cost == "parameters" else self.config.objective.cost
        costs = Budget(0.0, of, seq_len=self.problem.budget.seq_len).costs(self.problem.structure, sizes=self.problem.sizes)
        return costs.left_by(plan.kept, self.problem.structure) / costs.dense

    def _results(self, model: nn.Module, chunks: int) -> Iterator[Measured]:
        return self.measure.measure(model, self.windows, self.prepared, self.config.batch_size, chunks)
