"""``test`` and ``validate`` on two processes measure what one does, where two do not divide the windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.evaluated import WINDOWS, evaluate
from tests.distributed.processes import run
from tests.tiny import save_tiny


@pytest.mark.slow  # two processes are started
def test_two_ranks_count_every_window_once(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    run(["-m", "tests.distributed.evaluated", str(tmp_path), str(model)], log := tmp_path / "log", 120, ranks=2)
    alone = evaluate(tmp_path, model)
    assert [tokens for _, tokens in alone["test"]] == [WINDOWS * 15, 7]
    assert [tokens for _, tokens in alone["validate"]] == [WINDOWS * 15]
    for rank in range(2):
        together = json.loads((tmp_path / f"evaluated{rank}.json").read_text())
        for command, measured in alone.items():
            for (nll, tokens), (expected, count) in zip(together[command], measured, strict=True):
                assert (tokens, nll) == (count, pytest.approx(expected, rel=1e-6))
    assert "replicates some samples" not in log.read_text()  # Lightning's own sampler
