"""The run, from top to bottom: load, trace, score, search, cut, reconstruct, recover, evaluate, export.

This file is the one to read first. Every line of :func:`prune` is a stage, and every stage lives in a room of its own. The Lightning
callbacks (``callbacks/``) call the same stages when a Trainer says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adapruner.argument_checks import typed
from adapruner.data.from_texts import POOL, check_forms, data_from_texts
from adapruner.data.run_data import RunData
from adapruner.errors import ConfigurationError, written_as
from adapruner.export.card import card_of_report, card_of_run
from adapruner.export.folder import ExportRecord
from adapruner.export.staging import check_no_export
from adapruner.files.atomic import writing
from adapruner.files.folder_lock import check_there, held
from adapruner.progress import RUN_LOG, announce, logged_to, shown
from adapruner.pruning.budget import Budget
from adapruner.pruning.plan import PruningPlan
from adapruner.recovery.distillation import Distillation, check_vocabulary
from adapruner.recovery.early_stop import check_not_judged, held_out_windows
from adapruner.recovery.form import check_trainable
from adapruner.recovery.teacher import vocabulary_of
from adapruner.recovery.time_budget import check_no_time_budget
from adapruner.recovery.training import RecoveredModel, RecoveryConfig, recovery_config, short_recovery, train_recovery
from adapruner.report.answer import stages_in_words
from adapruner.report.measured_before import MeasuredBefore
from adapruner.report.record import PAGE_NAME, check_can_draw, write_report
from adapruner.report.recorder import ReportConfig, ReportRecorder
from adapruner.report.terminal import print_times
from adapruner.search.before_loading import check_budget_before_loading
from adapruner.search.find_plan import FoundPlan, find_plan, save_found_plan
from adapruner.search.options import PYTHON_NAMES, PruningOptions, pruning_options, short_names
from adapruner.search.score import ScoredModel, score_model
from adapruner.search.study import SearchOutcome
from adapruner.search.validation import check_model_and_data
from adapruner.stage_times import keep_times
from adapruner.stages import PrunedModel, export, load_model, prepare_distillation, reconstruct

#: What sets of text are called here, whose other options are not this function's: nothing is said of them.
_TEXTS = {"data": "calibration", "data, calibration": "calibration", "data, search": "calibration", "data, reconstruction": "calibration"}
_TEXTS |= {"data.reconstruction.samples_per_source": "reconstruction_samples"}
_TEXTS |= {"data, recovery": "recovery_texts", "data, evaluation": "evaluation"}


@dataclass(frozen=True, repr=False)
class PruningResult:
    """What :func:`prune` returns; printed, it says what was removed and what that cost in perplexity.

    >>> rows = [("dense", "dense", 10.0), ("adapruner", "pruned", 19.5), ("adapruner", "reconstructed", 14.25)]
    >>> keys = ("method", "stage", "value")
    >>> measured = [{**dict(zip(keys, row)), "dataset": "wiki", "window": 128} for row in rows]
    >>> PruningResult(None, None, None, None, measured)  # what prune returns has the others filled in
    PruningResult(None, perplexity on wiki, windows of 128 tokens: 10.00 dense, 19.50 pruned, 14.25 reconstructed)
    >>> PruningResult(None, None, None, None)
    PruningResult(None, perplexity not measured: give evaluation=[held-out texts])
    """

    model: Any
    """The pruned model, ready to generate; the object that was given, where one was given."""
    tokenizer: Any = field(repr=False)
    plan: PruningPlan
    """Which units stay, as a record."""
    outcome: SearchOutcome | None
    """The search: trials, the winner's recipe; ``None`` where a plan or a recipe was given."""
    perplexity: list[Mapping[str, Any]] = field(default_factory=list)
    """Rows of ``stage``, ``method``, ``dataset``, ``window``, ``value``: what was measured on ``evaluation``."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """The record that ``report.json`` holds."""

    def __repr__(self) -> str:
        """The plan, and perplexity at every stage on every set; how to have it measured, where it was not."""
        measured = "; ".join(stages_in_words(self.perplexity)) or "not measured: give evaluation=[held-out texts]"
        return f"{type(self).__name__}({self.plan!r}, perplexity {measured})"

    @typed
    def save(self, folder: str | Path, **options: Any) -> ExportRecord:
        """Writes the folder that transformers, vLLM and llama.cpp load; options as :func:`adapruner.stages.export`."""
        card = card_of_run(str(self.plan.model.get("name")), card_of_report(self.report), dtype=options.get("dtype"))
        return export(self.model, folder, self.tokenizer, **{"card": card, **options})


@typed
def prune(
    model: Any,
    tokenizer: Any = None,
    calibration: Any = None,
    budget: Budget | float = 0.2,
    *,
    recovery: RecoveryConfig | int | str | None = None,
    evaluation: Any = None,
    recovery_texts: Any = None,
    reconstruction_samples: int = 0,
    report: ReportConfig = ReportConfig(),
    folder: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> PruningResult:
    """Makes a causal LM smaller: searches which units matter least, removes them, refits and recovers what stays.

    Args:
        model: a Hugging Face causal LM, changed in place, or a name or folder to load one from. Where the call is interrupted in the
            refit, a model that was given is half changed: load it again.
        tokenizer: of the model; loaded beside a model that is loaded by name.
        calibration: texts that decide which units matter: a list, a mapping of source names to lists, a ``datasets.Dataset`` with a
            column ``text``, or token windows ``[n, seq_len]``.
        budget: how much to remove; a number is a fraction of the block parameters.
        recovery: LoRA recovery (or another ``form``) after the refit, or a number of optimizer steps, or a training time such as
            ``"45m"``; ``None`` or 0 leaves it out.
        evaluation: held-out texts, in the same forms, on which perplexity is measured at every stage; ``None`` measures nothing.
        recovery_texts: what recovery trains on; the calibration texts when empty, without those that the search is judged on where recovery
            is judged on them, too (``RecoveryConfig.early_stop``).
        reconstruction_samples: windows of 128 tokens that the refit sees of each source of the calibration texts, instead of those that
            the units are scored on: more of them make a better refit and take time in proportion.
        report: what else is compared and measured for the report.
        folder: the run folder. With one the run goes on where an earlier call was ended, and writes ``plan.json``, ``trials.csv``,
            ``report.html`` and what a resumed run needs; without one nothing is written to disk.
        progress: show bars and what is decided.
        options: ``search``, ``recipe``, ``plan``, ``reconstruction``, ``seed``, ``attention_units``, ... as :func:`adapruner.stages.score`
            takes them.

    Raises:
        AdaPrunerError: in one line, before the heavy work, where something does not fit.

    >>> import adapruner
    >>> from adapruner.demo import texts
    >>> recipe = adapruner.Recipe({"l2": 1.0})  # without one, the recipe is searched
    >>> result = adapruner.prune("demo", calibration=texts(), budget=0.4, recipe=recipe, reconstruction=None, progress=False)
    >>> 0.39 < result.plan.pruned_fraction < 0.41
    True
    """
    names = {**short_names(budget, options.get("search"), options.get("seed"), recovery), **_TEXTS, **PYTHON_NAMES}
    with written_as(names):
        asked, recovery = pruning_options(budget, **options), recovery_config(recovery)
        if recovery is not None and report.compare_recovered:
            check_no_time_budget(recovery.time_budget)
            check_not_judged(recovery.early_stop)
        _check_before_loading(model, asked, calibration, evaluation, recovery_texts)
    if folder is not None:
        check_can_draw("lift it, or give no folder")
    began = time.time()
    with written_as(names), shown(progress), _run_folder(folder) as where, ExitStack() as log:
        model, tokenizer = load_model(model, tokenizer)
        if recovery is not None:
            check_trainable(model, recovery.form, recovery.lora)
            check_vocabulary(recovery.distillation, vocabulary_of(model))
        data = _data(
            calibration,
            tokenizer,
            asked.search.seed,
            evaluation,
            _recovery_texts(recovery, recovery_texts, calibration),
            reconstruction_samples,
        )
        reports = where is not None or evaluation is not None
        more = [lambda: report.check_prompts(model, tokenizer)] if reports else []
        if recovery is not None and recovery.early_stop:
            more.append(partial(held_out_windows, data.search_windows, data.recovery_windows, recovery.early_stop))
        check_model_and_data(model, data, asked.budget, report.sequence_lengths() if reports else {}, *more)
        keep = partial(_keep, log, where, began)
        scored = score_model(model, data, asked, folder=where, compared_metrics=report.compare, on_accepted=keep)
        distillation = _distillation(model, data, recovery, where)  # while the model is dense
        recover = short_recovery(data.recovery_windows, recovery, asked.search.recovery_steps, distillation)
        found = find_plan(scored, recover=recover)  # the folder is this call's already
        scored = scored.after_search()
        save_found_plan(scored, found, tokenizer)
        recorder = _recorder(report, scored, found, tokenizer, recovery, distillation) if reports else None
        pruned = reconstruct(scored, found)
        scored = scored.after_pruning()
        if recorder is not None:
            recorder.measure_stage(pruned.stage, pruned.model, pruned.judged)
        recovered = _recover(pruned.model, data, recovery, where, found, tokenizer, distillation)
        rows, record = _finish_report(recorder, pruned, recovered, where)
        print_times()
    return PruningResult(model, tokenizer, found.plan, found.outcome, rows, record)


def _check_before_loading(model: Any, asked: PruningOptions, calibration: Any, evaluation: Any, recovery: Any) -> None:
    """What the weights have no say in."""
    if not isinstance(calibration, RunData):
        check_forms(calibration=calibration, evaluation=evaluation, recovery_texts=recovery)
    if isinstance(model, str | Path):
        check_budget_before_loading(str(model), asked)


@contextmanager
def _run_folder(folder: str | Path | None) -> Iterator[Path | None]:
    """The folder, made, locked against a second run, and cleared of what a killed one was writing."""
    if folder is None:
        yield None
        return
    if not isinstance(folder, str | Path) or not str(folder):
        raise ConfigurationError(f"folder: expected the path of a run folder, got {folder!r}; give one, or None to write nothing")
    where = Path(folder)
    check_no_export(where)
    with held(where), writing(where / "plan.json", remedy="make room, the same call goes on"):
        yield where


def _keep(log: ExitStack, folder: Path | None, began: float, identity: str) -> None:
    """What the run says and how long its stages take, from now on; on disk where there is a folder."""
    if folder is not None:
        log.enter_context(logged_to(folder / RUN_LOG))
    log.enter_context(keep_times(folder, identity, began))


def _data(calibration: Any, tokenizer: Any, seed: int, evaluation: Any, recovery: Any, refitted: int) -> RunData:
    if isinstance(calibration, RunData):
        if refitted:
            raise ConfigurationError(
                f"reconstruction_samples: expected 0 beside a RunData, which has windows of its own, got {refitted}; leave it out"
            )
        return calibration
    return data_from_texts(calibration, tokenizer, evaluation=evaluation, recovery=recovery, seed=seed, reconstruction_samples=refitted)


def _recovery_texts(recovery: Any, texts: Any, calibration: Any) -> Any:
    if recovery is None:
        return None
    if texts is None and recovery.early_stop:
        return POOL
    return calibration if texts is None else texts


def _distillation(model: Any, data: RunData, recovery: RecoveryConfig | None, folder: Path | None) -> Distillation | None:
    """What the dense model says of the recovery's text, where it is to be learnt."""
    if recovery is None or not recovery.distillation:
        return None
    return prepare_distillation(model, data.recovery_windows, recovery.distillation, folder)


def _recorder(
    report: ReportConfig,
    scored: ScoredModel,
    found: FoundPlan,
    tokenizer: Any,
    recovery: RecoveryConfig | None,
    distillation: Distillation | None,
) -> ReportRecorder:
    """Of the dense model everything is measured now."""
    settings = None if recovery is None else asdict(recovery)
    recorder = ReportRecorder(
        report, scored, found, tokenizer, MeasuredBefore.of(scored, found, batch_size=report.batch_size, recovery=settings)
    )
    steps = recovery.most_steps if recovery is not None and report.compare_recovered else 0
    recorder.measure_dense(short_recovery(scored.data.recovery_windows, recovery, steps or 0, distillation))
    return recorder


def _recover(
    model: Any,
    data: RunData,
    recovery: RecoveryConfig | None,
    folder: Path | None,
    found: FoundPlan,
    tokenizer: Any,
    distillation: Distillation | None,
) -> RecoveredModel | None:
    if recovery is None:
        return None
    identity = {"plan": found.plan.hash, "text": data.recovery_windows.fingerprint}
    options: dict[str, Any] = {"identity": identity, "tokenizer": tokenizer, "distillation": distillation, "held_out": data.search_windows}
    return train_recovery(model, data.recovery_windows, recovery, folder=folder, **options)


def _finish_report(
    recorder: ReportRecorder | None, pruned: PrunedModel, recovered: RecoveredModel | None, folder: Path | None
) -> tuple[list[Mapping[str, Any]], Mapping[str, Any]]:
    """The measurements and the report's record; written where there is a folder."""
    if recorder is None:
        return [], {}
    recorder.measure_final(pruned.model, recovered=recovered is not None)
    record = recorder.to_report(
        name="pruned" if folder is None else folder.resolve().name,
        model=pruned.model,
        recovery=None if recovered is None else recovered.to_report(),
        reconstruction_seconds=pruned.seconds,
    )
    if folder is not None:
        check_there(folder)
        write_report(record, folder)
        announce(f"report: {folder / PAGE_NAME}")
    return list(recorder.perplexity), record
