"""Whether model, data, budget and what is asked for belong together: everything that can be refused before a unit is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from adapruner.data.run_data import RunData
from adapruner.errors import ConfigurationError, DataError, check_all
from adapruner.importance.finiteness import check_activations, check_weights
from adapruner.pruning.allocation import allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.recipe import Recipe
from adapruner.search.prepare_problem import ProblemBuilder
from adapruner.search.space import SearchSpace


def check_model_and_data(
    model: Any, data: RunData, budget: Budget, other_lengths: Mapping[str, int] | None = None, *more: Callable[[], object]
) -> None:
    """Whether the model, on its device, can read the data: lengths, tokens, finite weights; then one forward pass of one sample.

    Args:
        budget: a latency is measured with sequences of its own.
        other_lengths: option -> tokens of further sequences that are run through the model beside the data.
        more: further checks, to be said together with these.

    Raises:
        AdaPrunerError: with all that does not fit.
    """
    timed = {"budget.seq_len": budget.seq_len} if budget.of == "latency" else {}
    check_all(
        lambda: check_lengths(model, data, timed | dict(other_lengths or {})),
        lambda: check_tokens(model, data),
        lambda: check_weights(model),
        *more,
    )
    check_activations(model, data.calibration_windows)


def check_lengths(model: Any, data: RunData, other_lengths: Mapping[str, int]) -> None:
    """Windows against the positions that the model knows.

    Raises:
        ConfigurationError: naming every option whose sequences are too long.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    lengths = {f"data.{name}": windows.input_ids.shape[1] for name, windows in _window_sets(data)} | dict(other_lengths)
    long = {name: length for name, length in lengths.items() if isinstance(limit, int) and length > limit}
    if long:
        names = ", ".join(long)
        raise ConfigurationError(f"{names}: expected at most the model's {limit} positions, got {max(long.values())}; shorten them")


def check_tokens(model: Any, data: RunData) -> None:
    """Token ids against the rows of the embedding.

    Raises:
        DataError: if a set has a token that the model does not.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    for name, windows in _window_sets(data):
        least, most = int(windows.input_ids.min()), int(windows.input_ids.max())
        if least < 0:
            raise DataError(f"data.{name}: expected token ids of 0 or more, got {least}; mask what is no token by attention_mask")
        if most >= rows:
            raise DataError(
                f"data.{name}: expected tokens below the model's {rows}, got {most}: the tokenizer does not match the model; "
                "give the model's own in data.tokenizer, or leave it out"
            )


def _window_sets(data: RunData) -> Iterator[tuple[str, Any]]:
    """Name of the option that made the set -> its windows."""
    for length, windows in data.calibration_windows_at.items():
        first = length == data.calibration_windows.input_ids.shape[1]
        yield f"calibration.{'seq_len' if first else 'other_seq_lens'}", windows
    others = (("search", data.search_windows), ("reconstruction", data.reconstruction_windows), ("recovery", data.recovery_windows))
    for name, windows in others:
        if windows is not None:
            yield f"{name}.seq_len", windows
    for (name, _), windows in data.evaluation_windows.items():
        yield f"evaluation.{name}.windows", windows


def check_problem(builder: ProblemBuilder, plan: PruningPlan | None, recipe: Recipe | None, space: SearchSpace) -> None:
    """Whether model, budget, pool, and the given plan, recipe or space belong together, before anything is scored.

    Raises:
        BudgetError: if no plan can reach the budget.
        PlanError: if the plan is for another model.
        ConfigurationError: if the recipe names what the pool or the model does not have.
    """
    problem = builder.without_statistics()
    if plan is not None:
        plan.check(builder.structure, builder.fingerprint, builder.weights)
    if recipe is not None:
        if recipe.calibration.seq_len is not None and recipe.calibration.seq_len not in builder.lengths:
            known = ", ".join(map(str, builder.lengths))
            got = recipe.calibration.seq_len
            raise ConfigurationError(f"recipe.calibration.seq_len: expected a length of the pool ({known}), got {got}; leave it null")
        if recipe.calibration.cluster_weights is None:
            problem.calibration.sample_weights(recipe.calibration)
    if plan is not None:
        return
    allocation = space.allocation if recipe is None else recipe.allocation
    largest = recipe.pruned_fraction if recipe is not None else None if space.pruned_fraction is None else space.pruned_fraction[1]
    if largest is not None:
        replace(builder.budget, pruned_fraction=largest).costs(builder.structure, sizes=problem.sizes, latency=problem.latency)
    elif allocation.method == "uniform":  # scores have no say in how many units go
        allocate(
            {g.name: torch.ones(g.units) for g in builder.structure.groups}, builder.structure, builder.budget, allocation, problem.costs
        )
