"""Two processes end a training at the same step, whatever each of them measures, and keep the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.models.loading import load_language_model
from tests.distributed.processes import run
from tests.distributed.runs import TinyData
from tests.tiny import save_tiny

pytestmark = pytest.mark.slow  # two processes are started


def on_both(folder: Path, strategy: str, **options: Any) -> dict[str, Any]:
    """What both ranks say; the weights of both are the same."""
    save_tiny(folder / "model")
    run(["-m", "tests.distributed.endings", str(folder), strategy, json.dumps(options)], folder / "log.txt", 240, ranks=2)
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    one, other = (torch.load(folder / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[name], value) for name, value in other.items())
    return first  # type: ignore[no-any-return]


def test_the_first_rank_s_clock_counts_for_both(tmp_path: Path) -> None:
    found = on_both(tmp_path, "ddp", time_budget="8s")
    assert (found["steps"], found["ended_by"]) == (8, "time budget")
    assert found["rates"] == pytest.approx([3e-2 * (1 - step / 8) for step in range(8)])


def test_norms_beside_adapters_are_sharded_too(tmp_path: Path) -> None:
    found = on_both(tmp_path, "fsdp1", time_budget="4s")
    assert (found["steps"], found["ended_by"]) == (4, "time budget")
    trained, dense = torch.load(tmp_path / "rank0.pt"), load_language_model(str(tmp_path / "model"), dtype="float32").state_dict()
    assert not torch.equal(trained["model.norm.weight"], dense["model.norm.weight"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_both_keep_the_weights_of_the_best_look(tmp_path: Path, strategy: str) -> None:
    found = on_both(tmp_path, strategy, every_n_steps=2)
    assert found["ended_by"] == "early stop"
    assert found["steps"] == found["best"] + 4 < 40
    model = load_language_model(str(tmp_path / "model"), dtype="float32")
    held_out = TinyData(2).search_windows
    assert evaluate_nll(model, held_out).nll == pytest.approx(found["looks"][0][1], rel=1e-5)
    model.load_state_dict(torch.load(tmp_path / "rank0.pt"))
    assert evaluate_nll(model, held_out).nll == pytest.approx(dict(found["looks"])[found["best"]], rel=1e-5)
