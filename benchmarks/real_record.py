"""The file of figures that :mod:`real_models` writes."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from real_text import UNSEEN

from adapruner.files.atomic import write_atomically

SEQ_LEN = 128
DENSE = "dense"


def kept_beside(file: Path) -> Path:
    """The folder of what is worth keeping until all is measured."""
    return file.with_name(f"{file.name}.kept")


class Record:
    """The file of figures; every cell is on the disk before the next is begun. Several processes may write the same file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.file, self.model, self.device = options.json, options.model, _device(options.device)
        kept_beside(self.file).mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(kept_beside(self.file) / "lock")
        self.setting = setting = _setting(options)
        self.content = self._read()
        other = {name: value for name, value in self.content["setting"].items() if setting.get(name, value) != value}
        if other:
            raise SystemExit(f"--json: expected cells under the same settings, got {other}; give them again, or another file")

    def _read(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {"setting": self.setting, "cells": []}

    @property
    def cells(self) -> list[dict[str, Any]]:
        """All of them, of perplexity and of tasks."""
        return self.content["cells"]

    def has(self, **key: Any) -> bool:
        """Whether some cell has these values."""
        return any(all(cell.get(k) == v for k, v in key.items()) for cell in self.cells)

    def add_stages(self, budget: float, method: str, seed: int, stages: Iterable[tuple[str, dict[str, float]]]) -> None:
        """Cells of all stages of one method, together."""
        started, cells = time.monotonic(), []
        for stage, values in stages:
            seconds = round(time.monotonic() - started, 1)
            for domain, value in values.items():
                where = {"domain": domain, "unseen": domain in UNSEEN, "perplexity": round(value, 4), "seconds": seconds}
                cells.append({"model": self.model, "budget": budget, "method": method, "seed": seed, "stage": stage, **where})
            shown = "  ".join(f"{d}{'*' if d in UNSEEN else ''} {v:.2f}" for d, v in values.items())
            print(f"{budget:.0%} seed {seed} {method}, {stage}: {shown}  ({time.monotonic() - started:.0f} s)", flush=True)
        self._add(cells)

    def add_tasks(self, budget: float, method: str, seed: int, stage: str, scores: Iterable[Any], how: str) -> None:
        """A cell for each task."""
        by_task: dict[str, dict[str, Any]] = {}
        for score in scores:
            cell = by_task.setdefault(score.task.removesuffix("_local"), {"documents": score.documents})
            cell[score.metric] = score.value
            if score.metric == "acc":
                cell["stderr"] = score.stderr
        who = {"model": self.model, "budget": budget, "method": method, "seed": seed, "stage": stage}
        self._add([{**who, "task": task, **values} for task, values in by_task.items()], tasks=how)
        shown = "  ".join(f"{task} {values['acc']:.3f}" for task, values in by_task.items())
        print(f"{budget:.0%} seed {seed} {method}, {stage}: {shown}", flush=True)

    def _add(self, cells: list[dict[str, Any]], **more: Any) -> None:
        """What another process wrote meanwhile stays, the same cell of two processes once."""
        with self.lock:
            self.content = {**self._read(), **more}
            self.cells.extend({**cell, "device": self.device} for cell in cells if not self.has(**{k: cell[k] for k in _KEYS if k in cell}))
            write_atomically(self.file, json.dumps(self.content, indent=1) + "\n")

    def best(self, budget: float, methods: Iterable[str], count: int, seed: int) -> list[str]:
        """Methods by their mean log-perplexity on unseen domains after recovery, the best first."""

        def final(method: str) -> float:
            key = {"budget": budget, "method": method, "seed": seed, "stage": "recovered", "unseen": True}
            return statistics.fmean(math.log(c["perplexity"]) for c in self.cells if key.items() <= c.items())

        return sorted(methods, key=final)[:count]


#: What a figure is of.
_KEYS = ("budget", "method", "seed", "stage", "domain", "task")


def _device(name: str) -> str:
    """What a figure was measured on."""
    return f"{torch.cuda.get_device_name(name) if name.startswith('cuda') else name}, torch {torch.__version__}"


def _setting(options: argparse.Namespace) -> dict[str, Any]:
    cells = (
        "json",
        "data",
        "device",
        "budgets",
        "seeds",
        "methods",
        "method",
        "settings",
        "arms",
        "task_limit",
        "kept",
        "units",
        "refits",
        "pipelines",
        "gate_steps",
        "windows",
    )  # every cell says of itself
    return {**{k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in cells}, "seq_len": SEQ_LEN}
