"""Two processes in lockstep: separate interpreters, a time limit, results as files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapruner.search.ranks import Ranks

ROOT = Path(__file__).parent.parent.parent
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")

SCRIPT = """
import json, sys
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from adapruner.search.objective import Objective
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchConfig, run_search
from tests.tiny import pose_problem, random_windows, tiny_llama

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=sys.argv[3], rank=rank, world_size=2, timeout=timedelta(seconds=60))
model = tiny_llama()
problem = pose_problem(model, random_windows(3, 12, seed=1, sources=("books", "code")))
windows = random_windows(4, 12, seed=2)
config = SearchConfig(n_trials=7, batch_size=4, space=SearchSpace(metrics=["l2", "gate_fisher"]))
calls = []
outcome = run_search(model, problem, windows, config, folder / "run", {"model": "x"}, lambda r, b: calls.append(r.trial))
result = {"hash": outcome.plan.hash, "params": [t.params for t in outcome.trials], "seen": calls, "best": outcome.best.value}
try:
    run_search(model, problem, windows, config, folder / "run", {"model": "y"})
except Exception as error:
    result["refused"] = f"{type(error).__name__}: {error}"

evaluate = Objective.of_plan
def fails_on_one_rank(*arguments, **options):
    if rank == 1:
        raise ValueError("only here")
    return evaluate(*arguments, **options)
Objective.of_plan = fails_on_one_rank
third = run_search(model, problem, windows, SearchConfig(n_trials=4, space=config.space), folder / "failing", {"model": "x"})
result["states"] = [t.state for t in third.trials]
dist.destroy_process_group()
(folder / f"rank{rank}.json").write_text(json.dumps(result))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_two(script: Path, folder: Path, seconds: float) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER and not k.startswith("TORCHELASTIC")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    address, processes = f"tcp://127.0.0.1:{free_port()}", []
    try:
        for rank in range(2):
            command = [sys.executable, str(script), str(rank), str(folder), address]
            with (folder / f"rank{rank}.log").open("w") as log:
                processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True))
        codes = [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert codes == [0, 0], "\n".join((folder / f"rank{r}.log").read_text()[-2000:] for r in range(2))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_one_process_is_its_own_group() -> None:
    ranks = Ranks()
    assert (ranks.active, ranks.rank, ranks.size) == (False, 0, 1)
    assert ranks.from_first("value") == "value"
    assert ranks.gather("value") == ["value"]


@pytest.mark.slow
def test_two_processes_end_with_one_plan(tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(SCRIPT)
    first, second = run_two(script, tmp_path, seconds=100)
    assert first == second
    assert len(first["params"]) == 7  # an odd number: no trial too many
    assert first["seen"] == list(range(7))
    assert len({json.dumps(params, sort_keys=True) for params in first["params"]}) == 7
    assert first["refused"].startswith("StudyError: search: expected the study in")
    assert first["states"] == ["complete", "failed", "complete", "failed"]
    with (tmp_path / "run" / "trials.csv").open() as rows:
        assert len(rows.readlines()) == 1 + 7
