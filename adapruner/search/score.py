"""Scoring: what a run knows of a dense model before it decides which units go. The search and a fixed recipe both start from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapruner.calibration.pool import CalibrationPool
from adapruner.data.run_data import RunData
from adapruner.distributed import Ranks
from adapruner.errors import check_all
from adapruner.files.atomic import check_room
from adapruner.files.digests import digest_of
from adapruner.importance.metrics import find_metric
from adapruner.models.fingerprint import digest_weights, fingerprint_model
from adapruner.models.units import ModelStructure
from adapruner.progress import announce
from adapruner.pruning.before_pruning import trace_for_plan, trace_without_padding
from adapruner.pruning.bias_compensation import NEEDS as BIAS_NEEDS
from adapruner.pruning.plan import PruningPlan
from adapruner.pruning.problem import PruningProblem
from adapruner.pruning.self_check import check_family
from adapruner.recovery.configuration import ReconstructionConfig, Ridge
from adapruner.recovery.reconstruction import fitting_form, too_few_tokens
from adapruner.recovery.streams import choose_windows, states_folder
from adapruner.recovery.teacher import vocabulary_of
from adapruner.search.depth_and_width import DepthWidthStage, RemainingModel, prune_depth_and_width
from adapruner.search.journal import check_no_other_search, check_study
from adapruner.search.options import PruningOptions
from adapruner.search.prepare_problem import ProblemBuilder
from adapruner.search.split import split_windows
from adapruner.search.study_identity import lengths_of, needs_of, refit_strength, study_identity
from adapruner.search.validation import check_problem
from adapruner.stage_times import stage as timed


@dataclass(frozen=True)
class ScoredModel:
    """A dense model with everything that decides which of its units go: what :func:`score` returns and the other stages take.

    The model is whole; a plan that comes of it is applied by :func:`adapruner.stages.apply` or :func:`adapruner.stages.reconstruct`.
    """

    model: Any
    """The dense causal LM."""
    data: RunData
    options: PruningOptions
    structure: ModelStructure
    """Units of the dense model, each with every coupled row and column."""
    stage: DepthWidthStage
    """Layers and hidden channels that go before units are searched; none by default."""
    problem: PruningProblem
    """Structure, statistics, calibration pool and budget of the model that units are searched in."""
    given: PruningPlan | None
    """The plan to apply instead of a search, for the model that units are searched in."""
    refit: Ridge | None
    """Ridge of the local refit that trials are judged after; ``None`` judges them as pruned."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What the value of a trial depends on, as JSON types."""
    folder: Path | None = None
    """The run folder; ``None`` keeps everything in memory."""
    seconds: float = 0.0
    """Time that collecting the statistics took; 0 where they came from the run folder."""

    def after_search(self) -> ScoredModel:
        """The same without Gram matrices, which only trials read and which may take more than the model: refit, comparison and recovery
        of a run do without."""
        return replace(self, problem=replace(self.problem, grams=None))

    def after_pruning(self) -> ScoredModel:
        """The same without statistics either: no further plan will be made, and none be cut, of this model. The pool stays."""
        return replace(self, problem=self.problem.without_statistics())


def score_model(
    model: Any,
    data: RunData,
    options: PruningOptions,
    *,
    name: str | None = None,
    folder: Path | None = None,
    compared_metrics: Iterable[str] = (),
    on_accepted: Callable[[str], None] | None = None,
    room: int = 0,
) -> ScoredModel:
    """Traces the model, refuses what cannot work, and collects the statistics that the search, the recipe or the plan need.

    Args:
        model: the dense causal LM, whole and on its device; it stays as it is.
        data: its token windows.
        options: what is asked for.
        name: of the model, for the plan; as its configuration says when ``None``.
        folder: where statistics are kept and looked for; ``None``: nowhere.
        compared_metrics: metrics that others will score the units by, beside the search.
        on_accepted: called once nothing is left to refuse, before the first statistic is collected, with a digest of what the plan
            depends on.
        room: bytes that the caller will write besides statistics; a disk without it is refused.

    Raises:
        AdaPrunerError: with everything that does not fit, before the heavy work.
    """
    given = options.plan
    structure = trace_for_plan(model, given) if given else trace_without_padding(model, options.attention_units, options.ffn_units)
    for kind, reason in structure.left_whole:
        announce(f"{kind} stays whole: {reason}")
    check_family(model, structure)
    options.gates.check_vocabulary(vocabulary_of(model))
    pool, config = data.calibration_windows, options.depth_width
    stage = prune_depth_and_width(model, structure, config, options.budget, given, pool, options.statistics_batch_size)
    weights = digest_weights(model)
    name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    with stage.entered(model) as remaining:
        options = _with_possible_reconstruction(model, data, options, remaining)
        fingerprint, seed = fingerprint_model(model), options.search.seed
        what = remaining.structure, data, remaining.budget
        builder = ProblemBuilder(model, *what, name, fingerprint, folder, seed, options.statistics_batch_size, weights)
        check_all(
            lambda: check_problem(builder, remaining.given, options.recipe, options.search.space),  # an unreachable budget, say
            lambda: options.search.space.check_pool(CalibrationPool.of_windows(pool), list(builder.lengths)),
            lambda: split_windows(data.search_windows, options.search),
        )
        problem = builder.without_statistics()
        refit = refit_strength(builder, options.search, options.reconstruction)
        identity = study_identity(options, data, fingerprint, weights, refit)
        if options.searches and folder is not None:
            Ranks().on_rank_zero(check_study, folder, identity, options.rounds, options.search.storage)
        elif folder is not None:
            Ranks().on_rank_zero(check_no_other_search, folder, given)
        needs, grams = _needs(options, compared_metrics), options.searches and refit is not None
        lengths = lengths_of(options.search, options.recipe, given)
        if folder is not None:
            written = room + builder.bytes_to_write(needs, lengths, grams) + _bytes_of_refit(model, remaining.structure, options)
            Ranks().on_rank_zero(check_room, folder, written)
        if on_accepted is not None:
            on_accepted(digest_of({**identity, **_beside_the_study(options, given)}))
        if needs is not None:
            with timed("statistics"):
                problem = builder.build(builder.pools(), needs, lengths, grams=grams)
    seconds = sum(builder.seconds.values())
    return ScoredModel(model, data, options, structure, stage, problem, remaining.given, refit, identity, folder, seconds)


def _bytes_of_refit(model: Any, structure: ModelStructure, options: PruningOptions) -> int:
    """What a refit keeps of its solutions: the output projections, as far as they stay."""
    if options.reconstruction is None:
        return 0
    outputs = {group.output.module for group in structure.groups}
    whole = sum(p.numel() for p in model.parameters())
    return sum(p.nbytes for name in outputs for p in model.get_submodule(name).parameters()) * options.weights_left(whole) // whole


def _with_possible_reconstruction(model: Any, data: RunData, options: PruningOptions, remaining: RemainingModel) -> PruningOptions:
    """The local form where the family does not let the sequential one be solved: known before the search, not after it."""
    asked = options.reconstruction
    if asked is None:
        return options
    windows = data.refitted_on.input_ids
    few = too_few_tokens(remaining.structure, len(windows), windows.shape[1], asked)
    if few:
        announce(few)
    possible: ReconstructionConfig = fitting_form(model, remaining.structure, windows, asked)
    states_folder(model, remaining.structure, windows[choose_windows(len(windows), possible)], possible)  # which it refuses now, or never
    if possible == asked:
        return options
    announce("reconstruction: local, since this family's layers do not simply add attention and FFN to their input")
    return replace(options, reconstruction=possible)


def _beside_the_study(options: PruningOptions, given: PruningPlan | None) -> dict[str, Any]:
    """What the plan depends on that a trial's value does not."""
    return {
        "recipe": None if options.recipe is None else options.recipe.to_dict(),
        "plan": None if given is None else given.hash,
        "rounds": options.rounds,
        "gates": options.gates.to_dict(),
    }


def _needs(options: PruningOptions, compared_metrics: Iterable[str]) -> frozenset[str] | None:
    """Names of the statistics that are needed; ``None`` where nothing has to be scored: a plan is given, and no metric compared."""
    needs = frozenset().union(*(find_metric(metric).needs for metric in compared_metrics))
    if options.plan is None:
        return needs | needs_of(options.search, options.recipe)
    if options.plan.output_bias:
        return needs | BIAS_NEEDS
    return needs or None
