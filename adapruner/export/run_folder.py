"""What a run left behind, and which of it an export starts from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError, ModelError, PlanError
from adapruner.export.adapters import ADAPTER_FOLDER
from adapruner.export.base_model import find_base_model
from adapruner.export.card import card_of_report
from adapruner.export.folder import PLAN_FILE
from adapruner.export.rebuilding import PREFIX, read_checkpoint
from adapruner.export.staging import is_export
from adapruner.files.digests import lines_are_sealed, opened
from adapruner.progress import announce
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.recovery.checkpoint_contents import PLAN_KEY, with_best_weights

CONFIG_FILE, MODEL_FOLDER, REPORT_FILE = "config.yaml", "model", "report.json"
CONFIG_NOTE = "digest of these lines, for adapruner export; change them as you like"


@dataclass(frozen=True)
class Source:
    """Where the weights come from: an exported folder, or a checkpoint on a base model."""

    plan: PruningPlan
    words: str
    """For the user."""
    card: dict[str, Any]
    """What the run says of these very weights, for the model card."""
    exported: Path | None = None
    """An export to write once more; None: ``record`` is used."""
    record: dict[str, Any] | None = None
    """The checkpoint's dictionary."""
    base: dict[str, Any] | None = None
    """``name_or_path``, ``dtype``, ``revision`` of the base model."""


def find_source(run: Path, checkpoint: Path | None, adapters: str, model: str | None = None) -> Source:
    """What to export: the given checkpoint; else the last one; else, or where it is older than the run's end, ``model/``.

    Args:
        run: the folder of a run, or an export.
        checkpoint: a file, or None.
        adapters: ``folder`` asks for weights with the adapters still apart.
        model: the base model's folder or name, in place of what the run says.

    Raises:
        ConfigurationError: if there is no such folder, or nothing in it to export, or its base model is gone.
        PlanError: if the plan is missing or was changed.
        ModelError: if the checkpoint is damaged or of another plan.
    """
    if not run.is_dir():
        raise ConfigurationError(f"run: expected the folder of a run, or an export, got no folder at {run}; check the path")
    if is_export(run):
        if checkpoint is not None:
            raise ConfigurationError(f"checkpoint: expected a run beside it, got the export {run}; give the folder of the run")
        return _of_export(run, read_plan(run / PLAN_FILE), {}, adapters)
    if not (run / PLAN_FILE).is_file():
        raise ConfigurationError(f"run: expected a run with {PLAN_FILE}, got {run} without it; give the folder that fit wrote into")
    plan = read_plan(run / PLAN_FILE)
    report, exported, file = _report(run, plan), run / MODEL_FOLDER, checkpoint or _last_checkpoint(run)
    config = _of_this_run(_config(run), report, run / CONFIG_FILE)
    finished = is_export(exported) and _plan_hash(exported) == plan.hash  # else damaged, or of an earlier run in the same folder
    if file is None and not finished:
        raise ConfigurationError(
            f"run: expected a checkpoint or an exported model, got a run without either in {run} (it ended before recovery saved one); "
            f"start the same fit again, it goes on where it stopped, or fit with --pruning.plan {run / PLAN_FILE}"
        )
    if file is None:
        return _of_export(exported, plan, _card(config, report), adapters)
    record = read_checkpoint(file)
    found = read_plan(record[PLAN_KEY])
    if found.hash != plan.hash:
        raise ModelError(f"checkpoint: expected the plan {plan.hash} of the run, got {found.hash} in {file}; give a checkpoint of this run")
    steps, step = _steps(report), record.get("global_step", "unknown")
    behind = steps is not None and step != steps
    best, best_step = with_best_weights(record, PREFIX)
    if best_step is not None and checkpoint is None:  # the run's own last one: the result is that of the best look
        record, step = best, best_step
    elif best_step is not None:
        behind = behind or step != best_step
    if checkpoint is None and behind and finished and (adapters == "merged" or (exported / ADAPTER_FOLDER).is_dir()):
        return _of_export(exported, plan, _card(config, report), adapters)
    words = f"the weights of step {step} from {file}"
    return Source(plan, words, _card(config, {} if behind else report), record=record, base=_base(config, run, model))


def _of_export(exported: Path, plan: PruningPlan, card: dict[str, Any], adapters: str) -> Source:
    if adapters == "folder" and not (exported / ADAPTER_FOLDER).is_dir():
        raise ConfigurationError(
            f"adapters: expected adapters kept apart, got only the merged weights in {exported}; "
            "give the run's folder with a checkpoint, or leave the option out"
        )
    return Source(plan, f"the finished export in {exported}", card, exported=exported)


def _plan_hash(exported: Path) -> str | None:
    try:
        return read_plan(exported / PLAN_FILE).hash
    except PlanError:
        return None


def _last_checkpoint(run: Path) -> Path | None:
    """The one written last; a sharded one is a folder."""
    found = [path for path in run.rglob("*.ckpt") if not any(part.startswith(".") for part in path.relative_to(run).parts)]
    return max(found, key=lambda path: (path.lstat().st_mtime_ns, path.name), default=None)


def _config(run: Path) -> dict[str, Any]:
    """The run's ``config.yaml``; empty where there is none.

    Raises:
        ConfigurationError: if it is damaged.
    """
    import yaml

    file = run / CONFIG_FILE
    try:
        text = file.read_text(encoding="utf-8")
        record = yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"run: expected YAML in {file}, got damage ({error}); restore the file") from None
    if not isinstance(record, dict):
        return {}
    if not lines_are_sealed(text, CONFIG_NOTE):
        announce(f"leaves seeds out of the model card: {file} is not as fit wrote it")
        record = {name: value for name, value in record.items() if name == "model"}
    return record


def _base(config: dict[str, Any], run: Path, given: str | None) -> dict[str, Any]:
    """How the run loaded its model. Code that comes with a model is not run, whatever the file says."""
    model = config.get("model")
    if given is not None:
        model = {**(model if isinstance(model, dict) else {}), "name_or_path": given}
    if not isinstance(model, dict) or not isinstance(model.get("name_or_path"), str):
        raise ConfigurationError(
            f"run: expected the model's name in {run / CONFIG_FILE}, got none; restore the file, or give the model by --model"
        )
    name = given or find_base_model(model["name_or_path"], (run / CONFIG_FILE).read_text(encoding="utf-8"), run)
    return {"name_or_path": name, "dtype": str(model.get("dtype") or "auto"), "revision": model.get("revision")}


def _card(config: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Numbers of the report and every seed that the run was given. An extra: a damaged report costs its numbers, no more."""
    try:
        card = card_of_report(report)
    except (KeyError, TypeError, AttributeError, ValueError):
        card = {}
    seeds = _seeds(config)
    return {**card, "seeds": seeds} if seeds else card


def _seeds(config: dict[str, Any]) -> dict[str, Any]:
    """What the configuration says, by the part of the run that draws from it."""
    paths = {
        "everything": ("seed_everything",),
        "data": ("data", "seed"),
        "search": ("pruning", "search", "seed"),
        "recovery": ("recovery", "seed"),
    }
    found = {name: _inside(config, *path) for name, path in paths.items()}
    return {name: seed for name, seed in found.items() if seed is not None}


def _of_this_run(config: dict[str, Any], report: dict[str, Any], file: Path) -> dict[str, Any]:
    """The configuration, without its seeds where the report of this very plan has others: then it is that of another run."""
    told = report.get("seeds") or {}
    if all(told.get(name, seed) == seed for name, seed in _seeds(config).items()):
        return config
    announce(f"leaves seeds out of the model card: {file} is not that of this run, whose report has other seeds")
    return {name: value for name, value in config.items() if name == "model"}


def _report(run: Path, plan: PruningPlan) -> dict[str, Any]:
    """``report.json`` if it is of this plan; else empty. One that is damaged costs the card its numbers, which is said."""
    if not os.path.lexists(run / REPORT_FILE):
        return {}
    try:
        report = opened(json.loads((run / REPORT_FILE).read_text(encoding="utf-8")), may_lack=True)
    except (OSError, ValueError) as error:
        announce(f"leaves the measurements out of the model card: {run / REPORT_FILE} is damaged ({' '.join(str(error).split()):.80})")
        return {}
    if _inside(report, "model", "plan_hash") == plan.hash:
        return report
    announce(f"leaves the measurements out of the model card: {run / REPORT_FILE} is of another plan")
    return {}


def _steps(report: dict[str, Any]) -> int | None:
    """Optimizer steps at the end of the run; None where the report does not say."""
    steps = _inside(report, "recovery", "lora", "steps")
    return steps if isinstance(steps, int) else None


def _inside(record: Any, *path: str) -> Any:
    """A value deep in a record; None where the path does not lead to one."""
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record
