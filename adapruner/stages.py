"""The stages of a run as functions with plain arguments and frozen results; :func:`adapruner.prune` calls them in their order.

===================== ============================================================================================
:func:`write_texts`   lets the dense model write the text, for whoever has none
:func:`score`         traces the model and collects the statistics that decide which units matter
:func:`search`        finds the plan: which units stay
:func:`apply`         removes the other units
:func:`reconstruct`   removes them and refits what stays, in closed form
:func:`teach`         writes down what the dense model says of a text, for a recovery that distils
:func:`recover`       trains low-rank adapters on the pruned model and merges them
:func:`evaluate`      perplexity of a model on texts
:func:`export`        writes the folder that transformers, vLLM and llama.cpp load
===================== ============================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from adapruner.argument_checks import check_type, got, typed
from adapruner.data.from_texts import data_from_texts, evaluation_from_texts, windows_from_texts
from adapruner.data.run_data import RunData
from adapruner.distributed import Ranks
from adapruner.errors import ConfigurationError, PlanError, written_as
from adapruner.evaluation.perplexity import NLLResult, evaluate_nll
from adapruner.export.folder import ExportRecord, export_model
from adapruner.export.loading import load_by_name
from adapruner.export.saving import pruned_by, save_as_export
from adapruner.files.folder_lock import held
from adapruner.importance.finiteness import check_weights
from adapruner.models.fingerprint import digest_weights, fingerprint_model
from adapruner.models.loading import check_language_model, load_tokenizer
from adapruner.own_text.writer import write_texts as write_texts
from adapruner.progress import progress_bar
from adapruner.pruning.before_pruning import remove_padding, trace_for_plan
from adapruner.pruning.budget import Budget
from adapruner.pruning.depth_and_width import DepthWidthCut, apply_depth_and_width
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.pruning.problem import bias_means
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import prune_model, write_widths
from adapruner.recovery.configuration import ReconstructionConfig
from adapruner.recovery.distillation import Distillation, DistillationConfig, check_teacher, check_vocabulary
from adapruner.recovery.early_stop import held_out_windows
from adapruner.recovery.form import check_trainable
from adapruner.recovery.judged_refit import JudgedRefit, refit_if_better
from adapruner.recovery.post_pruning import PostPruning, recipe_of
from adapruner.recovery.solved_projections import FOLDER as REFIT
from adapruner.recovery.teacher import vocabulary_of, write_down
from adapruner.recovery.training import RecoveredModel, RecoveryConfig, recovery_config, train_recovery
from adapruner.search.before_loading import check_budget_before_loading
from adapruner.search.config import SearchConfig
from adapruner.search.find_plan import FoundPlan, find_plan
from adapruner.search.options import PYTHON_NAMES, pruning_options, short_names
from adapruner.search.score import ScoredModel, score_model
from adapruner.search.validation import check_model_and_data
from adapruner.stage_times import stage


@dataclass(frozen=True)
class PrunedModel:
    """A model after :func:`apply` or :func:`reconstruct`: the same object, smaller."""

    model: Any
    plan: PruningPlan
    seconds: float = 0.0
    """Time that the refit took, and its judging; 0 without one."""
    stage: str = "pruned"
    """``pruned``, or ``reconstructed`` after a refit, taken back or not."""
    judged: JudgedRefit | None = None
    """What the refit did to the loss on the search split; ``None`` where nobody asked."""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured: (name of the text, window in tokens) -> result."""

    results: Mapping[tuple[str, int], NLLResult]

    @property
    def perplexity(self) -> dict[tuple[str, int], float]:
        """exp of the mean NLL in nats per token."""
        return {key: result.perplexity for key, result in self.results.items()}


@typed
def load_model(model: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """A causal LM and its tokenizer: as they are given, or loaded by name or folder.

    Raises:
        ModelError: if the model cannot be loaded, or is no Hugging Face causal LM.
    """
    _check_tokenizer(tokenizer)
    source = str(model) if isinstance(model, str | Path) else None
    if source is not None:
        with written_as(PYTHON_NAMES):
            model = load_by_name(source)
    if isinstance(tokenizer, str | Path) or (tokenizer is None and source is not None):
        with written_as({"model.name_or_path": "model" if tokenizer is None else "tokenizer"}):
            tokenizer = load_tokenizer(str(tokenizer or source))
    check_language_model(model, "model")
    return model, tokenizer


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer is not None and not isinstance(tokenizer, str | Path) and not callable(tokenizer):
        raise ConfigurationError(f"tokenizer: expected a tokenizer, its name or its folder, got {got(tokenizer)}; give one")


@typed
def score(
    model: Any,
    tokenizer: Any = None,
    calibration: Any = None,
    budget: Budget | float = 0.2,
    *,
    search: SearchConfig | int | None = None,
    recipe: Recipe | None = None,
    plan: PruningPlan | str | Path | None = None,
    reconstruction: ReconstructionConfig | None = ReconstructionConfig(),
    seed: int | None = None,
    folder: str | Path | None = None,
    compared_metrics: tuple[str, ...] = (),
    **units: Any,
) -> ScoredModel:
    """Traces the model and collects, once, the statistics that the search, the recipe or the plan need.

    Args:
        model: a Hugging Face causal LM, or a name or folder to load one from; it stays dense.
        tokenizer: of the model; not needed where ``calibration`` holds tokens.
        calibration: a list of texts, a mapping of source names to lists of texts, a ``datasets.Dataset`` with a column ``text``,
            int64 token windows ``[n, seq_len]``, or a :class:`adapruner.data.run_data.RunData`. A quarter of each source is kept
            for the search's own measurements.
        budget: how much to remove; a number is a fraction of the block parameters.
        search: how to search, or a number of trials; the default has 128.
        recipe: prune by this fixed recipe instead of searching.
        plan: prune by this plan, or plan file, instead of searching.
        reconstruction: the closed-form refit after the surgery, which trials are judged with too; ``None`` leaves it out.
        seed: of the windows that are drawn and of the search; the search's own when empty.
        folder: where statistics and the study are kept, and gone on from; ``None`` writes nothing.
        compared_metrics: further metrics whose statistics are wanted.
        units: ``attention_units``, ``remove_layers``, ... as :func:`pruning_options` takes them.

    Raises:
        AdaPrunerError: with everything that does not fit, before the heavy work.

    >>> import adapruner
    >>> from adapruner.demo import texts
    >>> recipe = adapruner.Recipe({"l2": 1.0})
    >>> scored = adapruner.stages.score("demo", calibration=texts(), budget=0.4, recipe=recipe, reconstruction=None)  # doctest: +ELLIPSIS
    adapruner: less text than asked for: ...
    >>> scored.problem.calibration.samples > 0
    True
    """
    with written_as({**short_names(budget, search, seed), **PYTHON_NAMES}):
        options = pruning_options(budget, search, recipe, plan, reconstruction, seed, **units)
        if isinstance(model, str | Path):
            check_budget_before_loading(str(model), options)
        model, tokenizer = load_model(model, tokenizer)
        data = calibration if isinstance(calibration, RunData) else data_from_texts(calibration, tokenizer, seed=options.search.seed)
        check_model_and_data(model, data, options.budget)
        where = None if folder is None else Path(folder)
        with _alone_in(where):
            return score_model(model, data, options, folder=where, compared_metrics=compared_metrics)


@typed
def search(
    scored: ScoredModel, *, recover: Callable[[Any], Any] | None = None, on_trial: Callable[[Any, Any], None] | None = None
) -> FoundPlan:
    """Finds the plan: by the joint search over calibration weights and metric mixtures, or by the recipe or plan that is given.

    Args:
        scored: what :func:`score` returned; its model is dense, and dense again afterwards.
        recover: recovers a model in place and briefly, for the second look at the best few; ``None`` decides before recovery.
        on_trial: called with every finished trial and the best so far.

    Raises:
        StudyError: if the study in the folder belongs to another search or is damaged, or too many trials fail.
    """
    with _alone_in(scored.folder):
        return find_plan(scored, recover=recover, on_trial=on_trial)


@typed
def apply(model: Any, plan: PruningPlan | FoundPlan | str | Path) -> PrunedModel:
    """Removes the units that the plan does not keep, in place; the kept weights stay as they are.

    Args:
        model: the dense causal LM.
        plan: a plan, a plan file, or what :func:`search` returned. A plan that adds biases gets them as zeros.

    Raises:
        PlanError: if the plan is damaged or for another model.
    """
    found = plan.plan if isinstance(plan, FoundPlan) else plan if isinstance(plan, PruningPlan) else read_plan(plan)
    check_language_model(model, "model")
    structure = trace_for_plan(model, found)
    found.check(structure, fingerprint_model(model), digest_weights(model))
    prune_model(model, structure, found)
    save_as_export(model, structure, found)
    return PrunedModel(model, found)


@typed
@stage("refit")
def reconstruct(scored: ScoredModel, found: FoundPlan, *, widths_only: bool = False) -> PrunedModel:
    """Removes the units that the plan does not keep, and refits the output projections of what stays; in place, instead of :func:`apply`.

    With ``reconstruction.only_if_better`` the refit is taken back where the search split says that the model is worse for it.

    (The refit needs the dense model's outputs, layer by layer, so that it removes the units itself.) Interrupted, it leaves some layers
    pruned and others not: load the dense model again. With a folder the next one goes on behind the last projection that was solved.

    Args:
        scored: what :func:`score` returned; its model is dense.
        found: what :func:`search` returned.
        widths_only: leave the refit out, since a checkpoint will bring its weights.

    Raises:
        PlanError: if the plan was found for another model; nothing is changed then.
    """
    if DepthWidthCut.of(found.plan) != scored.stage.cut:
        raise PlanError(
            "plan: expected the layers and hidden channels of the scored model to go, got others; search this scored model again"
        )
    model, problem, plan, reconstruction = scored.model, scored.problem, found.remaining, scored.options.reconstruction
    plan.check(problem.structure, problem.fingerprint)
    judged: JudgedRefit | None = None
    started, refits = time.monotonic(), reconstruction is not None and not widths_only
    apply_depth_and_width(model, scored.stage.cut)
    if refits:
        with progress_bar("reconstruction", problem.structure.layers) as advance:
            folder = None if scored.folder is None else scored.folder / REFIT
            how = replace(PostPruning.of_data(scored.data, reconstruction, None), folder=folder)
            judge: tuple[Any, int] = scored.data.search_windows, scored.options.search.batch_size
            judged = refit_if_better(model, problem, plan, how, *judge, advance, Ranks())
        write_widths(model.config, problem.structure, plan)
    else:
        prune_model(model, problem.structure, plan, bias_means(problem, recipe_of(plan)))
    save_as_export(model, scored.structure, found.plan)
    seconds = time.monotonic() - started if refits else 0.0
    return PrunedModel(model, found.plan, seconds, "pruned" if reconstruction is None else "reconstructed", judged)


@typed
def teach(
    model: Any,
    tokenizer: Any = None,
    texts: Any = None,
    recovery: RecoveryConfig = RecoveryConfig(),
    *,
    seq_len: int = 256,
    folder: str | Path | None = None,
) -> Distillation:
    """Runs the dense model over the text that :func:`recover` will train on, and keeps its most likely tokens: before it is pruned, so that
    teacher and student need not be held at once.

    Args:
        model: the dense causal LM, or a name or folder to load one from; it stays as it is.
        tokenizer, texts, seq_len: as :func:`recover` will get them.
        recovery: with ``distillation.weight`` above 0.
        folder: where the files are kept, and found again; ``None`` keeps them in memory.

    Raises:
        ConfigurationError: if ``recovery`` distils nothing, or there is no room for the files.

    >>> import adapruner
    >>> model, tokenizer = adapruner.stages.load_model("demo")
    >>> recovery = adapruner.RecoveryConfig(steps=2, distillation=adapruner.DistillationConfig(weight=0.5, top_k=8))
    >>> text = "Return a list of the words in the string, using sep as the delimiter string. " * 8
    >>> taught = adapruner.stages.teach(model, tokenizer, [text], recovery, seq_len=16)  # doctest: +ELLIPSIS
    adapruner: the teacher writes down the 8 most likely of 4,096 tokens at ... positions: ... MiB in memory
    ...
    >>> recovered = adapruner.stages.recover(model, tokenizer, [text], recovery, seq_len=16, distillation=taught)  # doctest: +ELLIPSIS
    recovery: ...
    >>> len(recovered.history)
    2
    """
    if not recovery.distillation:
        raise ConfigurationError("recovery.distillation.weight: expected a number above 0 to teach for, got 0; give 0.5, or do not teach")
    model, tokenizer = load_model(model, tokenizer)
    windows = windows_from_texts(texts, tokenizer, role="recovery", seq_len=seq_len, seed=recovery.seed)
    where = None if folder is None else Path(folder)
    with _alone_in(where):
        return prepare_distillation(model, windows, recovery.distillation, where)


@stage("teacher")
def prepare_distillation(model: Any, windows: Any, config: DistillationConfig, folder: Path | None) -> Distillation:
    """What the teacher says of the windows, as a loss: the model itself, still dense, or the one that ``config`` names, for a moment.

    Args:
        model: the dense causal LM, on its device.
        windows: of the recovery.
        folder: the run folder; this process's already.

    Raises:
        ConfigurationError: if the teacher has another vocabulary, or there is no room.
    """
    teacher = model
    if config.teacher is not None:
        teacher = load_by_name(config.teacher).to(next(model.parameters()).device)
        check_vocabulary(config, vocabulary_of(model), vocabulary_of(teacher))
    return Distillation(write_down(teacher, windows, config, folder), config)


@typed
def recover(
    model: Any,
    tokenizer: Any = None,
    texts: Any = None,
    recovery: RecoveryConfig | int | str = RecoveryConfig(),
    *,
    seq_len: int = 256,
    folder: str | Path | None = None,
    distillation: Distillation | None = None,
    held_out: Any = None,
) -> RecoveredModel:
    """Trains low-rank adapters on the pruned model and merges them, or its layers (``form``); the model's widths stay. Interrupted, it
    leaves the model as it was.

    Args:
        model: the pruned model, on the device where it is to be trained; changed in place.
        tokenizer: of the model; not needed where ``texts`` holds tokens.
        texts: as ``calibration`` of :func:`score`.
        recovery: how, or a number of optimizer steps, or a training time such as ``"45m"``.
        seq_len: tokens in a window.
        folder: where a checkpoint is kept, and gone on from; ``None`` writes nothing.
        distillation: what :func:`teach` returned, where ``recovery`` distils; its settings are those of the loss. Without it the teacher is
            the model that ``recovery.distillation.teacher`` names.
        held_out: as ``texts``, other ones: what it is judged on where ``recovery.early_stop`` asks for it.

    Raises:
        ConfigurationError: if ``recovery`` distils and there is no teacher, or is to be judged and there is no text for it.
        ModelError: if a loss or a gradient is not finite.
    """
    _check_tokenizer(tokenizer)
    config = recovery_config(recovery) or RecoveryConfig()
    check_language_model(model, "model")
    check_trainable(model, config.form, config.lora)
    check_teacher(config.distillation, distillation)
    remove_padding(model)
    windows = windows_from_texts(texts, tokenizer, role="recovery", seq_len=seq_len, seed=config.seed)
    where = None if folder is None else Path(folder)
    how: dict[str, Any] = {"role": "held out", "argument": "held_out", "seq_len": seq_len, "seed": config.seed}
    judged_on = None if held_out is None else windows_from_texts(held_out, tokenizer, **how)
    if config.early_stop:
        held_out_windows(judged_on, windows, config.early_stop)
    identity = {"text": windows.fingerprint, "plan": _plan_hash(model)}
    with _alone_in(where):
        if config.distillation and distillation is None:
            distillation = prepare_distillation(model, windows, config.distillation, where)
        options: dict[str, Any] = {"identity": identity, "tokenizer": tokenizer, "distillation": distillation, "held_out": judged_on}
        return train_recovery(model, windows, config, folder=where, **options)


@typed
def evaluate(model: Any, tokenizer: Any = None, texts: Any = None, *, window: int | list[int] = 128, batch_size: int = 8) -> Evaluation:
    """Perplexity of a model on texts: tokenised once, cut into windows that do not overlap, every token but a window's first predicted.

    Args:
        model: any causal LM.
        tokenizer: of the model; not needed where ``texts`` holds tokens.
        texts: as ``calibration`` of :func:`score`; each source is a text of its own.
        window: tokens in a window, or several such lengths.
        batch_size: windows in one forward pass.

    Raises:
        DataError: if a text is shorter than a window.
        ModelError: if a weight is not finite.
    """
    _check_tokenizer(tokenizer)
    check_type("model", model, nn.Module)
    check_weights(model)
    lengths = [window] if isinstance(window, int) else list(window)
    windows = evaluation_from_texts(texts, tokenizer, windows=lengths)
    return Evaluation({key: evaluate_nll(model, found, batch_size) for key, found in windows.items()})


@typed
def export(model: Any, folder: str | Path, tokenizer: Any = None, plan: PruningPlan | None = None, **options: Any) -> ExportRecord:
    """Writes the pruned model as a folder of safetensors that transformers, vLLM and llama.cpp load.

    Args:
        model: the pruned model, adapters merged.
        folder: where to; new, empty, or an earlier export, which is replaced as a whole.
        tokenizer: saved along; without one the folder says that it has none.
        plan: what the model was pruned by; known of a model that this package pruned, or loaded from an export.
        options: ``dtype``, ``max_shard_size``, ``pad``, ``card``, as :func:`adapruner.export.folder.export_model` takes them.

    Raises:
        ConfigurationError: if the folder holds something else, or it is not known what the model was pruned by.
    """
    _check_tokenizer(tokenizer)
    known = pruned_by(model)
    if known is None or (plan is not None and plan.hash != known[1].hash):
        raise ConfigurationError(
            f"model: expected one that adapruner pruned{'' if plan is None else f' by the plan {plan.hash}'}, got {type(model).__name__} "
            "without a record of it; prune it with adapruner.stages.apply or adapruner.prune, or load its export with adapruner.load"
        )
    return export_model(model, tokenizer, *known, folder, **options)


def _alone_in(folder: Path | None) -> AbstractContextManager[Any]:
    """The run folder for this process alone: two would write into one study, and each take the other's trials for a killed run's."""
    return nullcontext() if folder is None else held(folder)


def _plan_hash(model: Any) -> str:
    known = pruned_by(model)
    return "" if known is None else known[1].hash
