"""Iterative pruning in one run: prune a part of the budget, refit, score what is left, prune on, until the whole budget is met.

Of ``N`` rounds each removes the same share of the dense model, 1 / N of what is to go. A round is a search (or a recipe) of its own in the
model that the rounds before have left, cut and refitted. What comes out is one plan for the dense model: it is measured, refitted,
recovered and exported like any other, from the dense weights, so that errors of several refits do not add up.

Round ``n`` keeps its statistics, its study and the refitted weights in ``round-n/`` of the run folder: a run that was killed takes the
rounds before as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner.distributed import Ranks, is_rank_zero
from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.fingerprint import digest_weights
from adapruner.models.tracing import trace_structure
from adapruner.models.units import ModelStructure
from adapruner.progress import announce
from adapruner.pruning.budget import ABSOLUTE_TARGETS, Budget
from adapruner.pruning.costs.sizes import measure_sizes
from adapruner.pruning.depth_and_width import remaining_budget
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem
from adapruner.pruning.surgery import cut_layer, restored
from adapruner.recovery.configuration import deciding_values
from adapruner.recovery.judged_refit import outputs_of, put_outputs, refit_if_better
from adapruner.recovery.post_pruning import PostPruning
from adapruner.search.journal import ROUND
from adapruner.search.score import ScoredModel, score_model
from adapruner.search.statistics_cache import read_or_collect
from adapruner.search.study import SearchOutcome

REFIT = "refit.safetensors"
#: A round's search: scored model -> plan for it, and the search's history.
Find = Callable[[ScoredModel], tuple[PruningPlan, SearchOutcome | None]]


def folder_of_round(folder: Path, number: int) -> Path:
    """Where round ``number``, counted from 1, keeps what it goes on from."""
    return folder / f"{ROUND}{number}"


def find_in_rounds(scored: ScoredModel, find: Find) -> tuple[PruningPlan, SearchOutcome | None]:
    """The plan of all rounds, for the dense model, and the history of the last; the model is dense again afterwards.

    Args:
        scored: the dense model.
        find: searches one round.

    Raises:
        BudgetError: if a round's share of the budget cannot be reached.
    """
    plan, outcome, earlier = None, None, list[dict[str, Any]]()
    for number in range(1, scored.options.rounds + 1):
        announce(f"round {number} of {scored.options.rounds}: up to {_words(scored, number)}")
        if plan is None:
            plan, outcome = find(_first(scored))
        else:
            with _cut_and_refitted(scored, plan, number - 1):
                now = _score_again(scored, number)
                found, outcome = find(now)
            plan = join_plans(plan, found, scored.problem.structure)
            _check_what_stays(plan, scored.problem)
        if number < scored.options.rounds:
            earlier.append({"plan": plan.hash, "pruned_fraction": plan.pruned_fraction, "recipe": plan.recipe})
    assert plan is not None
    problem = scored.problem
    record = problem.budget.to_dict(problem.costs or problem.budget.costs(problem.structure, sizes=problem.sizes))
    return replace(plan, budget=record, provenance={**plan.provenance, "rounds": earlier}), outcome


def join_plans(first: PruningPlan, second: PruningPlan, dense: ModelStructure) -> PruningPlan:
    """Two plans one after the other as one for the model before both.

    Args:
        first: for the dense model.
        second: for the model that the first leaves: its units are numbered as they are there.
        dense: of the model before both.
    """
    kept = {name: [units[place] for place in second.kept[name]] if name in second.kept else units for name, units in first.kept.items()}
    return replace(
        second,
        model=first.model,
        kept=kept,
        units=first.units,
        unit_parameters=first.unit_parameters,
        parameters={**second.parameters, "dense": dense.parameters, "block_dense": dense.block_parameters},
    )


def _check_what_stays(plan: PruningPlan, problem: PruningProblem) -> None:
    """A round takes its fraction of what is there: of the dense model less may be left."""
    for group in problem.structure.groups:
        least, kept = problem.budget.smallest_width(group.units, group.at_least), len(plan.kept[group.name])
        if not problem.budget.is_protected(group.layer, problem.structure.layers) and kept < least:
            raise BudgetError(
                f"pruning.rounds: expected {least} of {group.units} units of {group.name} to stay, as budget.keep_at_least says, got "
                f"{kept} left by all rounds together; give fewer rounds, or a lower keep_at_least"
            )


def _budget_until(scored: ScoredModel, number: int) -> Budget:
    """What is to be gone of the dense model after a round: its own budget after the last, equal shares before."""
    problem, rounds = scored.problem, scored.options.rounds
    if number == rounds:
        return problem.budget
    costs = problem.costs or problem.budget.costs(problem.structure, sizes=problem.sizes)
    share: dict[str, Any] = {name: None for name in ABSOLUTE_TARGETS}
    return replace(problem.budget, **share, pruned_fraction=costs.fraction * number / rounds)


def _words(scored: ScoredModel, number: int) -> str:
    budget = _budget_until(scored, number)
    costs = budget.costs(scored.problem.structure, sizes=scored.problem.sizes)
    return f"{100 * costs.fraction:.3g} % of {costs.what} of the dense model"


def _first(scored: ScoredModel) -> ScoredModel:
    """The dense model with the first round's share of the budget."""
    problem, budget = scored.problem, _budget_until(scored, 1)
    shared = replace(problem, budget=budget, costs=budget.costs(problem.structure, sizes=problem.sizes))
    identity = {**scored.identity, "round": [1, scored.options.rounds]}
    return replace(scored, problem=shared, identity=identity, folder=_folder(scored, 1))


def _folder(scored: ScoredModel, number: int) -> Path | None:
    if scored.folder is None:
        return None
    folder = folder_of_round(scored.folder, number)
    folder.mkdir(exist_ok=True)
    return folder


def _score_again(scored: ScoredModel, number: int) -> ScoredModel:
    """What is known of the units that the rounds before have left; the budget says what is still to go."""
    model, options, dense = scored.model, scored.options, scored.problem.structure
    left = trace_structure(model, options.attention_units, options.ffn_units)
    sizes = scored.problem.sizes or measure_sizes(model, left)
    budget = remaining_budget(_budget_until(scored, number), dense, left, sizes)
    options = replace(options, budget=budget, rounds=1)
    return score_model(model, scored.data, options, name=scored.problem.model_name, folder=_folder(scored, number))


@contextmanager
def _cut_and_refitted(scored: ScoredModel, plan: PruningPlan, number: int) -> Iterator[None]:
    """The model as rounds up to ``number`` leave it, inside the block; the refit is made once."""
    model, problem, reconstruction = scored.model, scored.problem, scored.options.reconstruction
    deciding = None if reconstruction is None else deciding_values(reconstruction)
    depends = [problem.weights, plan.hash, plan.recipe, deciding, scored.data.refit_fingerprint, scored.identity]
    folder, key = _folder(scored, number), ":".join(["1", *map(str, depends)])

    def refit() -> dict[str, Tensor]:
        how = PostPruning.of_data(scored.data, reconstruction, None)
        refit_if_better(model, problem, plan, how, scored.data.search_windows, scored.options.search.batch_size, ranks=Ranks())
        return {**outputs_of(model, problem.structure), "digest": _digest(model)}

    with restored(model, problem.structure):
        if reconstruction is None:
            _cut(model, problem.structure, plan)
        else:
            tensors, known = read_or_collect(None if folder is None else folder / REFIT, key, refit, write=is_rank_zero())
            if known:
                _cut(model, problem.structure, plan)
                digest = tensors.pop("digest")
                put_outputs(model, tensors)
                if not torch.equal(digest, _digest(model)):
                    raise ConfigurationError(f"folder: expected {folder}/{REFIT} of this model and plan, got another; remove {folder}")
        yield


def _cut(model: Any, structure: ModelStructure, plan: PruningPlan) -> None:
    for layer in range(structure.layers):
        cut_layer(model, structure, plan, layer)


def _digest(model: Any) -> Tensor:
    """That of every weight, as a tensor: whether what was put in is all that the refit changed."""
    return torch.tensor(list(bytes.fromhex(digest_weights(model))), dtype=torch.uint8)
