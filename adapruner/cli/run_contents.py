"""What lies in the folder of a run, an export or in a plan: read from JSON and CSV alone, with nothing heavy loaded."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapruner.errors import AdaPrunerError, ConfigurationError
from adapruner.files.digests import SUMS, DamagedError, check_sums
from adapruner.pruning.plan import MARK, PruningPlan, read_plan
from adapruner.report.record import read_report
from adapruner.search.journal import read_lines

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
_LARGE = 1 << 26  # bytes of a file that is not read to be listed
_STATES = {1: "complete", 2: "pruned", 3: "failed"}  # by Optuna's numbers


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
    remarks: list[str] = []
    export = _read_export(path, remarks)
    known = (PLAN, REPORT, CONFIG, TRIALS, JOURNAL)
    if export is None and not any((path / name).is_file() for name in known):
        raise ConfigurationError(f"run: expected a run, an export or a plan.json, got {path} without {', '.join(known)}; check the path")
    found = {**_empty(path, "run" if export is None else "export"), "remarks": remarks}
    plan = read_plan(path / PLAN) if os.path.lexists(path / PLAN) else None
    found["plan"] = None if plan is None else plan_record(plan)
    found["report"] = _read_report(path, plan, found["remarks"])
    found["search"] = _read_search(path, remarks)
    told = ((found["report"] or {}).get("search") or {}).get("trials")
    if found["search"] is not None and told is not None and found["search"]["trials"] != told:
        remarks.append(f"the search has {found['search']['trials']} trials where {REPORT} tells of {told}: {JOURNAL} is of another state")
    found["holds"] = {"export": export} if export else _list_contents(path, remarks)
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
    if not os.path.lexists(path / REPORT):
        return None
    try:
        report = read_report(path)
    except AdaPrunerError as error:
        remarks.append(f"left out: {error}")
        return None
    if plan is not None and report.model.plan_hash != plan.hash:
        remarks.append(f"{REPORT} is of another plan, {report.model.plan_hash}: an earlier run's in the same folder")
    return report.to_dict()


def _read_search(path: Path, remarks: list[str]) -> dict[str, Any] | None:
    """Finished trials, the best and the best fixed one, from the journal, each line of which is checked; where machines share a study
    there is none, and ``trials.csv`` has them."""
    journal = _read_journal(path / JOURNAL, remarks)
    rows, table = None if journal is None else journal.pop("rows"), _read_table(path / TRIALS)
    if journal is not None and journal["begun"] == 0 and table:
        remarks.append(f"{JOURNAL} has no trial where {TRIALS} tells of {len(table)}: it is damaged")
    elif rows is not None and _differ(rows, table):
        remarks.append(f"{JOURNAL} and {TRIALS} are of different searches")
    rows = table if rows is None else rows
    if not rows and journal is None:
        return None
    complete = [row for row in rows if row["state"] == "complete" and row.get("value") not in ("", None)]
    fixed = [row for row in complete if row["name"] != "searched"]
    return {"trials": len(rows), "complete": len(complete), "best": _best(complete), "best_fixed": _best(fixed), "journal": journal}


def _read_table(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [row for row in csv.DictReader(lines) if row.get("state")]
    except (OSError, ValueError, csv.Error):
        return []


def _differ(rows: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a trial that both tell of is another one; of a run that was killed the table may be an earlier state."""
    own = {str(row["trial"]): _essence(row) for row in rows}
    return any(own[row["trial"]] != _essence(row) for row in table if row.get("trial") in own)


def _essence(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("name"), row["state"], _number(row.get("value")) if row["state"] == "complete" else None


def _number(value: Any) -> float | None:
    try:
        return round(float(value), 9)
    except (TypeError, ValueError):
        return None


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    try:
        row = min(rows, key=lambda r: (float(r["value"]), int(r["trial"])), default=None)
        return None if row is None else {"trial": int(row["trial"]), "name": row["name"], "value": float(row["value"])}
    except (KeyError, ValueError):
        return None


def _read_journal(file: Path, remarks: list[str]) -> dict[str, Any] | None:
    """``begun`` and ``finished`` trials, and ``rows`` of the latter, those of killed processes not counted; ``None`` without a journal."""
    if not os.path.lexists(file):
        return None
    try:
        lines, damaged, ours = read_lines(file)
    except OSError as error:
        remarks.append(f"left out: {JOURNAL}, which cannot be read ({error.strerror})")
        return None
    if damaged:
        remarks.append(f"left out: {damaged} damaged lines of {JOURNAL}")
    # Optuna's codes: 4 begins a trial, 6 sets its state (1 to 3: it ended), 8 notes something of it.
    trials: dict[int, dict[str, Any]] = {}
    for entry in lines:
        if entry.get("op_code") in (6, 8):
            trials.setdefault(entry.get("trial_id", -1), {}).update(
                entry.get("user_attr") or {k: entry[k] for k in ("state", "values") if k in entry}
            )
    ended = [t for _, t in sorted(trials.items()) if t.get("state") in _STATES and "killed" not in t]
    rows = [
        {
            "trial": number,
            "name": t.get("name", "searched"),
            "state": _STATES[t["state"]],
            "value": (t.get("values") or [t.get("value")])[0],
        }
        for number, t in enumerate(ended)
    ]
    return {"begun": sum(entry.get("op_code") == 4 for entry in lines), "finished": len(ended), "rows": rows if ours else None}


def _list_contents(path: Path, remarks: list[str]) -> dict[str, Any]:
    """Name -> what it is, of everything a run leaves."""
    holds: dict[str, Any] = {}
    for file in sorted(path.rglob("*.ckpt"), key=lambda p: p.lstat().st_mtime_ns):
        if not any(part.startswith(".") for part in file.relative_to(path).parts):
            holds[str(file.relative_to(path))] = {"checkpoint": True, "bytes": _size(file)}
    export, journal = _read_export(path / MODEL, remarks), _read_journal(path / JOURNAL, [])
    if export is not None:
        holds[MODEL] = export
    if journal is not None:
        holds[JOURNAL] = {"trials": journal["finished"], "bytes": _size(path / JOURNAL)}
    holds |= {file.name: {"bytes": _size(file)} for file in sorted(path.glob("*.gguf")) if file.is_file()}
    remarks += [f"{name} is no file" for name in _OTHERS if os.path.lexists(path / name) and not (path / name).is_file()]
    holds |= {name: {"bytes": _size(path / name)} for name in _OTHERS if (path / name).is_file()}
    return holds


def _read_export(folder: Path, remarks: list[str]) -> dict[str, Any] | None:
    """Class, plan and size of an export; ``None`` where there is none. Files of less than 64 MiB are checked to the last bit."""
    listed = os.path.lexists(folder / SUMS)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not listed and (not isinstance(config, dict) or not isinstance(config.get(MARK), dict)):
        return None
    try:
        changed = check_sums(folder, lambda file: not file.is_file() or file.stat().st_size < _LARGE)
        remarks += [f"{name} was changed after the export" for name in changed]
    except DamagedError as error:
        remarks.append(f"{folder.name} is damaged: {error}")
    config = config if isinstance(config, dict) and isinstance(config.get(MARK), dict) else {MARK: {}}
    weights = sum(_size(file) for file in folder.glob("*.safetensors"))
    stock = "pruned_shapes" not in config
    return {
        "class": (config.get("architectures") or [""])[0],
        "stock": stock,
        "dtype": config.get("dtype"),
        "plan": config[MARK].get("plan_hash"),
        "adapters": (folder / "adapter").is_dir(),
        "bytes": weights,
    }


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.lstat().st_size
