"""What lies in the folder of a run, an export or in a plan: read from JSON and CSV alone, with nothing heavy loaded."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapruner.errors import AdaPrunerError, ConfigurationError
from adapruner.pruning.plan import PruningPlan, read_plan
from adapruner.report.record import read_report

PLAN, REPORT, CONFIG, TRIALS, JOURNAL, MODEL = "plan.json", "report.json", "config.yaml", "trials.csv", "study.journal", "model"
_OTHERS = (
    "config.yaml",
    "report.html",
    "reranking.json",
    "calibration_set.json",
    "predictions.jsonl",
    "statistics.safetensors",
    "grams.safetensors",
)
_MARK = "adapruner"  # of an export, in its config.json


def gather(path: Path) -> dict[str, Any]:
    """All that ``--json`` prints: ``path``, ``kind``, ``plan``, ``report``, ``search``, ``holds`` and ``remarks``.

    ``plan`` and ``report`` are as in their files (the plan with ``kept`` counted, not listed), ``None`` where there is none.

    Raises:
        ConfigurationError, PlanError: if there is nothing of adapruner's at the path, or a plan was changed or is damaged.
    """
    if path.is_file():
        return {**_empty(path, "plan"), "plan": plan_record(read_plan(path))}
    if not path.is_dir():
        raise ConfigurationError(f"run: expected a run, an export or a plan.json, got nothing at {path}; check the path")
    export = _read_export(path)
    known = (PLAN, REPORT, CONFIG, TRIALS, JOURNAL)
    if export is None and not any((path / name).is_file() for name in known):
        raise ConfigurationError(f"run: expected a run, an export or a plan.json, got {path} without {', '.join(known)}; check the path")
    found = _empty(path, "run" if export is None else "export")
    plan = read_plan(path / PLAN) if (path / PLAN).is_file() else None
    found["plan"] = None if plan is None else plan_record(plan)
    found["report"] = _read_report(path, plan, found["remarks"])
    found["search"] = _read_search(path)
    found["holds"] = {"export": export} if export else _list_contents(path)
    return found


def plan_record(plan: PruningPlan) -> dict[str, Any]:
    """A plan with its units counted: ``layers`` has ``kept`` and ``units`` of each kind, layer by layer of the dense model."""
    record = plan.to_dict()
    layers = [
        {
            "layer": layer,
            "removed": layer in plan.removed_layers,
            **{
                kind: {"kept": 0 if layer in plan.removed_layers else len(plan.kept[name]), "units": plan.units[name]}
                for kind in ("attention", "ffn")
                if (name := f"{layer}.{kind}") in plan.kept
            },
        }
        for layer in sorted({int(name.split(".")[0]) for name in plan.kept})
    ]
    hidden = {} if plan.kept_hidden is None else {"kept_hidden": len(plan.kept_hidden)}
    rest = {key: value for key, value in record.items() if key not in ("kept", "units", "kept_hidden")}
    return {**rest, **hidden, "pruned_fraction": plan.pruned_fraction, "layers": layers}


def _empty(path: Path, kind: str) -> dict[str, Any]:
    return {"path": str(path), "kind": kind, "plan": None, "report": None, "search": None, "holds": {}, "remarks": []}


def _read_report(path: Path, plan: PruningPlan | None, remarks: list[str]) -> dict[str, Any] | None:
    """``report.json``; one that is damaged or of another plan costs a remark, no more."""
    if not (path / REPORT).is_file():
        return None
    try:
        report = read_report(path)
    except AdaPrunerError as error:
        remarks.append(f"left out: {error}")
        return None
    if plan is not None and report.model.plan_hash != plan.hash:
        remarks.append(f"{REPORT} is of another plan, {report.model.plan_hash}: an earlier run's in the same folder")
    return report.to_dict()


def _read_search(path: Path) -> dict[str, Any] | None:
    """Finished trials, the best and the best fixed one, from ``trials.csv``, and how many the journal has."""
    try:
        with (path / TRIALS).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("state")]
    except (OSError, ValueError, csv.Error):
        rows = []
    journal = _read_journal(path / JOURNAL)
    if not rows and journal is None:
        return None
    complete = [row for row in rows if row["state"] == "complete" and row.get("value")]
    fixed = [row for row in complete if row["name"] != "searched"]
    return {"trials": len(rows), "complete": len(complete), "best": _best(complete), "best_fixed": _best(fixed), "journal": journal}


def _best(rows: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    try:
        row = min(rows, key=lambda r: (float(r["value"]), int(r["trial"])), default=None)
        return None if row is None else {"trial": int(row["trial"]), "name": row["name"], "value": float(row["value"])}
    except (KeyError, ValueError):
        return None


def _read_journal(file: Path) -> dict[str, int] | None:
    """``begun`` and ``finished`` trials, those of killed processes not counted; ``None`` without a journal."""
    begun, finished, killed = 0, set(), set()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        # Optuna's codes: 4 begins a trial, 6 sets its state (1 to 3: it ended), 8 notes something of it.
        begun += entry.get("op_code") == 4
        if entry.get("op_code") == 6 and entry.get("state") in (1, 2, 3):
            finished.add(entry.get("trial_id"))
        if entry.get("op_code") == 8 and "killed" in (entry.get("user_attr") or {}):
            killed.add(entry.get("trial_id"))
    return {"begun": begun, "finished": len(finished - killed)}


def _list_contents(path: Path) -> dict[str, Any]:
    """Name -> what it is, of everything a run leaves."""
    holds: dict[str, Any] = {}
    for file in sorted(path.rglob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns):
        if not any(part.startswith(".") for part in file.relative_to(path).parts):
            holds[str(file.relative_to(path))] = {"checkpoint": True, "bytes": _size(file)}
    export, journal = _read_export(path / MODEL), _read_journal(path / JOURNAL)
    if export is not None:
        holds[MODEL] = export
    if journal is not None:
        holds[JOURNAL] = {"trials": journal["finished"], "bytes": _size(path / JOURNAL)}
    holds |= {name: {"bytes": _size(path / name)} for name in _OTHERS if (path / name).is_file()}
    return holds


def _read_export(folder: Path) -> dict[str, Any] | None:
    """Class, plan and size of an export; ``None`` where there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not isinstance(config.get(_MARK), dict):
        return None
    weights = sum(_size(file) for file in folder.glob("*.safetensors"))
    stock = "pruned_shapes" not in config
    return {
        "class": (config.get("architectures") or [""])[0],
        "stock": stock,
        "dtype": config.get("dtype"),
        "plan": config[_MARK].get("plan_hash"),
        "adapters": (folder / "adapter").is_dir(),
        "bytes": weights,
    }


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
