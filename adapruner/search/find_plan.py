"""From a scored model to the one plan that it is pruned by: the plan that is given, a fixed recipe's, or the winner of a search."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.distributed import Ranks, is_rank_zero
from adapruner.errors import PlanError
from adapruner.progress import announce, late_progress_bar, progress_bar
from adapruner.pruning.fixed_recipe import fixed_recipe_of, plain_recipe_sentence
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.problem import PruningProblem, make_plan
from adapruner.recovery.post_pruning import PostPruning
from adapruner.recovery.streams import SharedStream
from adapruner.search.chosen_samples import write_chosen_set
from adapruner.search.device_latency import meet_latency
from adapruner.search.learned_gates import learn_gates
from adapruner.search.rounds import find_in_rounds
from adapruner.search.score import ScoredModel
from adapruner.search.sequential_statistics import collect_in_sequence
from adapruner.search.study import SearchOutcome, run_search
from adapruner.search.trials import TrialRecord
from adapruner.stage_times import stage

OnTrial = Callable[[TrialRecord, TrialRecord | None], None]


@dataclass(frozen=True)
class FoundPlan:
    """Which units stay, and how that was found."""

    plan: PruningPlan
    """For the dense model."""
    remaining: PruningPlan
    """The same units for the model that they were searched in; differs from ``plan`` only where layers or hidden channels went first."""
    outcome: SearchOutcome | None
    """The search (of several rounds the last): its trials, the winner's recipe, the second look; ``None`` where a plan or a recipe was
    given."""


def save_found_plan(scored: ScoredModel, found: FoundPlan, tokenizer: Any = None) -> None:
    """Writes ``plan.json`` into the run folder, and ``calibration_set.json`` where there is a tokenizer; nothing without a folder."""
    if scored.folder is None or not is_rank_zero():
        return
    file = scored.folder / "plan.json"
    _keep_earlier(file, found.plan)
    found.plan.save(file)
    write_chosen_set(tokenizer, scored.data, scored.problem, found.remaining, scored.folder)


def _keep_earlier(file: Path, plan: PruningPlan) -> None:
    """Another plan there becomes ``plan-1.json`` and so on; that, and that it is damaged, is said."""
    if not file.is_file():
        return
    try:
        earlier = read_plan(file).hash
    except PlanError:
        announce(f"{file} is damaged: it is written again")
        return
    if earlier != plan.hash:
        number = next(n for n in count(1) if not os.path.lexists(file.with_name(f"plan-{n}.json")))
        announce(f"keeps the plan {earlier}, of an earlier run in {file.parent}, as plan-{number}.json")
        file.replace(file.with_name(f"plan-{number}.json"))


@stage("search")
def find_plan(
    scored: ScoredModel,
    *,
    recover: Callable[[nn.Module], nn.Module] | None = None,
    on_trial: OnTrial | None = None,
) -> FoundPlan:
    """Searches, or takes what is given. The model is dense again afterwards.

    Args:
        scored: the model, its statistics and what is asked for.
        recover: recovers a model in place and briefly, for the second look at the best few; ``None`` decides before recovery.
        on_trial: called with every finished trial and the best so far.

    Raises:
        StudyError: if the study belongs to another search or is damaged, or too many trials fail.
        PlanError: if ranks come to different plans, or the plan is for another model.
    """
    model, problem = scored.model, scored.problem
    with scored.stage.entered(model):
        if scored.options.rounds > 1 and scored.given is None:
            plan, outcome = find_in_rounds(scored, partial(_plan, recover=recover, on_trial=on_trial))
        else:
            plan, outcome = _plan(scored, recover, on_trial)
        if problem.latency is not None:  # every rank timed its own device: the first one's clock counts
            plan = Ranks().broadcast(plan)
        Ranks().check_same_plan(plan.hash)
        plan.check(problem.structure, problem.fingerprint)
    plain = fixed_recipe_of(plan.provenance) if outcome is not None else None
    if plain is not None:
        announce(plain_recipe_sentence(plain))
    return FoundPlan(scored.stage.lifted(plan), plan, outcome)


def _plan(
    scored: ScoredModel, recover: Callable[[nn.Module], nn.Module] | None, on_trial: OnTrial | None
) -> tuple[PruningPlan, SearchOutcome | None]:
    problem, plan, outcome = _ranked(scored, recover, on_trial)
    gates, recipe = scored.options.gates, scored.options.recipe if outcome is None else outcome.recipe
    if not gates:
        return plan, outcome
    if recipe is None:
        announce("gates: a given plan keeps its units, none is exchanged")
        return plan, outcome
    texts, identity = (scored.data.refitted_on, scored.data.search_windows), {**scored.identity, "text": scored.data.refit_fingerprint}
    with stage("gates"):
        return learn_gates(scored.model, problem, plan, recipe, *texts, gates, scored.folder, identity).plan, outcome


def _ranked(
    scored: ScoredModel, recover: Callable[[nn.Module], nn.Module] | None, on_trial: OnTrial | None
) -> tuple[PruningProblem, PruningPlan, SearchOutcome | None]:
    """The units that a ranking keeps: a given plan's, a recipe's, or the search's; and the statistics that it ranked by."""
    options, problem, folder = scored.options, scored.problem, scored.folder
    if scored.given is not None:
        announce(f"takes the plan {scored.given.hash}: no search")
        return problem, scored.given, None
    if options.recipe is not None:
        if options.recipe.sequential:
            windows, batch_size = scored.data.calibration_windows, options.statistics_batch_size
            problem = replace(problem, statistics=collect_in_sequence(scored.model, problem, options.recipe, windows, batch_size))
        plan = make_plan(problem, options.recipe, {"seed": problem.seed, **scored.identity})
        return problem, meet_latency(scored.model, problem, plan, options.recipe, folder, scored.identity), None
    pool = scored.data.calibration_windows  # the few are only compared: the refit's own windows may be many more
    post_pruning = PostPruning.of_windows(pool, options.reconstruction, recover, SharedStream())
    with ExitStack() as searching, late_progress_bar("best few again", searching.close) as on_candidate:
        shown = searching.enter_context(_shown(options.search.n_trials, on_trial))
        outcome = run_search(
            scored.model,
            problem,
            scored.data.search_windows,
            options.search,
            folder,
            scored.identity,
            shown,
            refit=scored.refit,
            post_pruning=post_pruning,
            on_candidate=on_candidate,
        )
    if outcome.resumed:
        announce(f"took {outcome.resumed} of {len(outcome.trials)} trials from the study in {folder}")
    return problem, meet_latency(scored.model, problem, outcome.plan, outcome.recipe, folder, scored.identity), outcome


@contextmanager
def _shown(trials: int, on_trial: OnTrial | None) -> Iterator[OnTrial]:
    """The progress bar of the search, and whoever else listens."""
    with progress_bar("search", trials) as advance:

        def show(record: TrialRecord, best: TrialRecord | None) -> None:
            words = "" if best is None or best.value is None else f"best {best.value:.4f}, trial {best.trial}, {best.name}, in nats/token"
            advance(record.trial + 1, words)
            if on_trial is not None:
                on_trial(record, best)

        yield show
