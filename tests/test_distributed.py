"""Two processes in lockstep: separate interpreters, a time limit, results as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapruner.distributed import Ranks
from adapruner.errors import PlanError
from tests.distributed.processes import run

SCRIPT = """
import json, os, sys
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from adapruner.search.trial_value import Objective
from adapruner.distributed import Ranks
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchConfig, run_search
from tests.tiny import prepare_problem, random_windows, tiny_llama

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
model = tiny_llama()
problem = prepare_problem(model, random_windows(3, 12, seed=1, sources=("books", "code")))
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
plans, first = lambda: Ranks().check_same_plan("ab" if rank == 0 else "cd"), lambda: Ranks().on_rank_zero(int, "x")
for name, action in (("plans", plans), ("first", first)):
    try:
        action()
    except Exception as error:
        result[name] = f"{type(error).__name__}: {error}"
dist.destroy_process_group()
(folder / f"rank{rank}.json").write_text(json.dumps(result))
"""


def test_one_process_is_its_own_group() -> None:
    ranks = Ranks()
    assert (ranks.active, ranks.rank, ranks.size) == (False, 0, 1)
    assert ranks.broadcast("value") == "value"
    assert ranks.gather("value") == ["value"]
    assert ranks.on_rank_zero(int, "3") == 3
    ranks.check_same_plan("ab")
    with pytest.raises(ValueError, match="invalid literal"):  # as it is: there is nobody to tell
        ranks.on_rank_zero(int, "x")


def test_ranks_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    ranks.size = 3
    monkeypatch.setattr(ranks, "gather", lambda value: [value, value, "cd"])
    with pytest.raises(PlanError, match=r"^plan: expected one plan on all 3 ranks, got ab on rank 0 and cd on rank 2; give all machines"):
        ranks.check_same_plan("ab")


@pytest.mark.slow
def test_two_processes_end_with_one_plan(tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(SCRIPT)
    run([str(script), str(tmp_path)], tmp_path / "log", seconds=100, ranks=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(first["params"]) == 7  # an odd number: no trial too many
    assert first["seen"] == list(range(7))
    assert len({json.dumps(params, sort_keys=True) for params in first["params"]}) == 7
    assert first["refused"].startswith("StudyError: search: expected the study in")
    assert first["plans"] == second["plans"]
    assert first["plans"].startswith("PlanError: plan: expected one plan on all 2 ranks, got ab on rank 0 and cd on rank 1")
    assert first["first"].startswith("StudyError: search: expected rank 0 to keep the study, got ValueError: invalid literal")
    assert first["states"] == ["complete", "failed", "complete", "failed"]
    with (tmp_path / "run" / "trials.csv").open() as rows:
        assert len(rows.readlines()) == 1 + 7
