"""The last state of recovery on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapruner.recovery.last_checkpoint import find_checkpoint, write_checkpoint


def test_a_checkpoint_of_a_sharded_run_is_kept_beside_that_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sharded = tmp_path / "checkpoints" / "last.ckpt"
    sharded.mkdir(parents=True)
    (sharded / "meta.pt").write_text("hours of work")
    assert find_checkpoint(tmp_path, {}) is None
    for step in (1, 2):
        write_checkpoint({"step": step}, sharded)
    assert torch.load(sharded, weights_only=True) == {"step": 2}
    assert (sharded.with_name("last-sharded-1.ckpt") / "meta.pt").read_text() == "hours of work"
    assert sorted(path.name for path in sharded.parent.iterdir()) == ["last-sharded-1.ckpt", "last.ckpt"]
    said = capsys.readouterr().out
    assert "is of a sharded run; the same trainer.strategy goes on from it" in said
    assert said.count("as last-sharded-1.ckpt") == 1
