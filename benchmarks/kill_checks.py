"""What a run folder must look like after its run came to the end: no leftovers, nothing half-written, a model that loads."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def leftovers(run: Path) -> list[str]:
    """Names that only a run at work may have."""
    found = [p for p in run.rglob("*") if p.suffix in (".tmp", ".new", ".old", ".lock", ".rename") or p.name.startswith(".write-test")]
    return sorted(str(p.relative_to(run)) for p in found)


def half_written(run: Path) -> list[str]:
    """Files that cannot be read to the end, whatever wrote them."""
    broken = []
    for file in sorted(p for p in run.rglob("*") if p.is_file() and p.suffix in READERS):
        try:
            READERS[file.suffix](file)
        except Exception as error:  # whatever is wrong with it
            broken.append(f"{file.relative_to(run)}: {type(error).__name__}")
    return broken


def _read_lines(file: Path) -> None:
    text = file.read_text()
    assert text.endswith("\n")
    for line in text.splitlines():
        json.loads(line)


def _read_table(file: Path) -> None:
    with file.open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert file.read_bytes().endswith(b"\n")
    assert len({len(row) for row in rows}) == 1


def _read_page(file: Path) -> None:
    assert file.read_text().rstrip().endswith("</html>")


def _read_settings(file: Path) -> None:
    import yaml

    assert yaml.safe_load(file.read_text())


def _read_tensors(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        assert list(opened.keys())


def _read_checkpoint(file: Path) -> None:
    import torch

    assert "state_dict" in torch.load(file, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda file: json.loads(file.read_text()),
    ".journal": _read_lines,
    ".jsonl": _read_lines,
    ".csv": _read_table,
    ".html": _read_page,
    ".yaml": _read_settings,
    ".safetensors": _read_tensors,
    ".ckpt": _read_checkpoint,
    ".py": lambda file: compile(file.read_text(), file.name, "exec"),
}


def facts(run: Path) -> dict[str, Any]:
    """What two runs of the same command must agree on."""
    plan = json.loads((run / "plan.json").read_text())
    report = json.loads((run / "report.json").read_text())
    rows = sorted((r["method"], r["stage"], r["dataset"], r["window"], r["value"]) for r in report["perplexity"])
    final = [r[-1] for r in rows if r[:2] == ("adapruner", "recovered")]
    weights = hashlib.sha256()
    for file in sorted((run / "model").glob("*.safetensors")):
        weights.update(file.read_bytes())
    return {
        "plan": plan["hash"],
        "perplexity": final,
        "rows": [list(r) for r in rows],
        "weights": weights.hexdigest()[:16],
        "trials": report["search"]["trials"],
        "steps": len(report["recovery"]["lora"]["history"]),
    }


def export_loads(run: Path) -> bool:
    """In a process of its own, which is forked before anything is computed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import torch

            from adapruner.export.loading import load

            with torch.no_grad():
                code = 0 if torch.isfinite(load(run / "model")(torch.arange(1, 17)[None]).logits).all() else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
