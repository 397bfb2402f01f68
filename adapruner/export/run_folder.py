"""What a run left behind, and which of it an export starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapruner.errors import ConfigurationError
from adapruner.export.adapters import ADAPTER_FOLDER
from adapruner.export.card import card_of_report
from adapruner.export.folder import PLAN_FILE
from adapruner.export.rebuilding import check_same_plan, read_checkpoint
from adapruner.export.staging import is_export
from adapruner.pruning.plan import PruningPlan, read_plan

CONFIG_FILE, MODEL_FOLDER, REPORT_FILE = "config.yaml", "model", "report.json"


@dataclass(frozen=True)
class Source:
    """Where the weights come from: an exported folder, or a checkpoint on a base model."""

    plan: PruningPlan
    words: str
    """For the user."""
    card: dict[str, Any]
    """What the run says of these very weights, for the model card."""
    exported: Path | None = None
    """An export to write again; None: ``record`` is used."""
    record: dict[str, Any] | None = None
    """The checkpoint's dictionary."""
    base: dict[str, Any] | None = None
    """``name_or_path``, ``dtype``, ``revision`` of the base model."""


def find_source(run: Path, checkpoint: Path | None, adapters: str) -> Source:
    """What to export: the given checkpoint; else the last one; else, or where it is older than the run's end, ``model/``.

    Args:
        run: the folder of a run, or an export.
        checkpoint: a file, or None.
        adapters: ``folder`` asks for weights with the adapters still apart.

    Raises:
        ConfigurationError: if there is no such folder, or nothing in it to export.
        PlanError: if the plan is missing or was changed.
        ModelError: if the checkpoint is damaged or of another plan.
    """
    if not run.is_dir():
        raise ConfigurationError(f"run: expected the folder of a run, or an export, got no folder at {run}; check the path")
    if is_export(run):
        if checkpoint is not None:
            raise ConfigurationError(f"checkpoint: expected a run beside it, got the export {run}; give the folder of the run")
        return _of_export(run, read_plan(run / PLAN_FILE), None, adapters)
    if not (run / PLAN_FILE).is_file():
        raise ConfigurationError(f"run: expected a run with {PLAN_FILE}, got {run} without it; give the folder that fit wrote into")
    plan = read_plan(run / PLAN_FILE)
    exported = run / MODEL_FOLDER if is_export(run / MODEL_FOLDER) else None
    if exported is not None and read_plan(exported / PLAN_FILE).hash != plan.hash:
        exported = None  # of an earlier run in the same folder
    file = checkpoint or _last_checkpoint(run)
    if file is None:
        return _of_export(_only(exported, run), plan, run, adapters)
    record = read_checkpoint(file)
    check_same_plan(record, plan, file)
    report = _report(run, plan)
    behind = _steps(report) is not None and record.get("global_step") != _steps(report)
    serves = exported is not None and (adapters == "merged" or (exported / ADAPTER_FOLDER).is_dir())
    if checkpoint is None and behind and serves:
        return _of_export(_only(exported, run), plan, run, adapters)
    words = f"the weights of step {record.get('global_step', 'unknown')} from {file}"
    return Source(plan, words, _card(run, None if behind else report), record=record, base=_base(run))


def _of_export(exported: Path, plan: PruningPlan, run: Path | None, adapters: str) -> Source:
    if adapters == "folder" and not (exported / ADAPTER_FOLDER).is_dir():
        raise ConfigurationError(
            f"adapters: expected adapters kept apart, got only the merged weights in {exported}; "
            "give the run's folder with a checkpoint, or leave the option out"
        )
    card = {} if run is None else _card(run, _report(run, plan))
    return Source(plan, f"the finished export in {exported}", card, exported=exported)


def _only(exported: Path | None, run: Path) -> Path:
    if exported is None:
        raise ConfigurationError(
            f"run: expected a checkpoint or an exported model, got a run without either in {run} (it ended before recovery saved one); "
            f"start the same fit again, it goes on where it stopped, or fit with --pruning.plan {run / PLAN_FILE}"
        )
    return exported


def _last_checkpoint(run: Path) -> Path | None:
    """The one written last; a sharded one is a folder."""
    found = [path for path in run.rglob("*.ckpt") if not any(part.startswith(".") for part in path.relative_to(run).parts)]
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def read_config(run: Path) -> dict[str, Any]:
    """The run's ``config.yaml``; empty where there is none.

    Raises:
        ConfigurationError: if it is damaged.
    """
    import yaml

    file = run / CONFIG_FILE
    try:
        record = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"run: expected YAML in {file}, got damage ({error}); restore the file") from None
    return record if isinstance(record, dict) else {}


def _base(run: Path) -> dict[str, Any]:
    """How the run loaded its model. Code that comes with a model is not run, whatever the file says."""
    model = read_config(run).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("name_or_path"), str):
        raise ConfigurationError(
            f"run: expected the model's name in {run / CONFIG_FILE}, got none; restore the file, or export the run's {MODEL_FOLDER} folder"
        )
    return {"name_or_path": model["name_or_path"], "dtype": str(model.get("dtype") or "auto"), "revision": model.get("revision")}


def _card(run: Path, report: dict[str, Any] | None) -> dict[str, Any]:
    """Numbers of the report and every seed that the run was given. An extra: a damaged report costs its numbers, no more."""
    try:
        card = {} if report is None else card_of_report(report)
    except (KeyError, TypeError, AttributeError, ValueError):
        card = {}
    config = read_config(run)
    sections = {"data": ("data",), "search": ("pruning", "search"), "recovery": ("recovery",)}
    found = {"everything": config.get("seed_everything"), **{name: _seed(config, path) for name, path in sections.items()}}
    seeds = {name: seed for name, seed in found.items() if seed is not None}
    return {**card, "seeds": seeds} if seeds else card


def _seed(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config.get("seed") if isinstance(config, dict) else None


def _report(run: Path, plan: PruningPlan) -> dict[str, Any] | None:
    """``report.json`` if it can be read and is of this plan."""
    try:
        report = json.loads((run / REPORT_FILE).read_text(encoding="utf-8"))
        return report if report["model"]["plan_hash"] == plan.hash else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _steps(report: dict[str, Any] | None) -> int | None:
    """Optimizer steps at the end of the run; None where the report does not say."""
    try:
        steps = report["recovery"]["lora"]["steps"] if report else None
    except (KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) else None
