"""All runs once for all tests: in two processes one killed and the others after it, and in this process the one they are measured by."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.distributed.processes import run
from tests.distributed.runs import KILLED_AT, describe, fit
from tests.tiny import save_tiny


@dataclass
class Runs:
    """What came of them."""

    folder: Path
    alone: dict[str, Any]
    """One process with the global batch, the plan given."""
    searched: dict[str, Any]
    """One process that searches."""
    ranks: list[dict[str, Any]]
    """Of each rank of two."""

    def weights(self, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
        """Of a run of two ranks, or of ``alone``."""
        found: dict[str, torch.Tensor] = torch.load(self.folder / (f"{name}.pt" if name == "alone" else f"{name}.{rank}.pt"))
        return found

    def distance(self, first: str, second: str, ranks: tuple[int, int] = (0, 0)) -> float:
        """Largest difference of two runs' weights."""
        one, other = self.weights(first, ranks[0]), self.weights(second, ranks[1])
        assert one.keys() == other.keys()
        return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "two-processes.lock"):  # one of pytest's workers makes the runs, the others wait for them
        folder = shared / "two-processes"
        if not (folder / "done").exists():
            folder.mkdir()
            _make(folder)
            (folder / "done").touch()
    named = [json.loads((folder / f"{name}.json").read_text()) for name in ("alone", "searched", "rank0", "rank1")]
    return Runs(folder, named[0], named[1], named[2:])


def _make(folder: Path) -> None:
    model, killed = save_tiny(folder / "model"), folder / "killed"
    killed.mkdir()

    def one_process(name: str, **options: Any) -> None:
        found = describe(fit(folder / name, model, **options), folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps(found))

    one_process("searched")
    checkpoint = killed / f"step={KILLED_AT}.ckpt"
    run(["-m", "tests.distributed.killed", str(killed), str(model)], folder / "killed.log", 150, ranks=2, until=checkpoint.exists)
    run(["-m", "tests.distributed.ranks", str(folder), str(model)], folder / "ranks.log", 300, ranks=2)
    one_process("alone", plan=killed / "plan.json")
