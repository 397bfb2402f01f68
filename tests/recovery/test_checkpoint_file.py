"""Which checkpoints may be read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from adapruner.errors import ConfigurationError
from adapruner.files.digests import DamagedError
from adapruner.recovery.checkpoint_file import check_index, check_is_local
from tests.complaints import complaint


class Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize(
    "path", ["", "last", "best", "hpc", "registry", "registry:me/model", "http://h/a.ckpt", "s3://a/b", "memory://a", "gone.ckpt", "."]
)
def test_what_is_no_local_checkpoint(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best").write_text("a file of a name that stands for something else")
    with pytest.raises(ConfigurationError, match=r"^ckpt_path: expected "):
        check_is_local(path)


def test_files_and_folders_pass(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("")
    assert "without meta.pt" in str(complaint(check_is_local, tmp_path))
    (tmp_path / "meta.pt").write_text("")
    for path in (None, str(tmp_path / "a.ckpt"), tmp_path):
        assert complaint(check_is_local, path) is None


def test_the_index_that_torch_writes_passes(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 4).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    dcp.save({"state_dict": model.state_dict(), "optimizer_0": optimizer.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    assert complaint(check_index, tmp_path) is None


@pytest.mark.parametrize("how", ["code", "half", "empty", "gone", "a name inside a name"])
def test_any_other_index_is_damage_and_runs_nothing(how: str, tmp_path: Path) -> None:
    index, ran = tmp_path / ".metadata", tmp_path / "ran"
    content = pickle.dumps(Runs(ran))
    if how == "a name inside a name":  # torch.distributed.checkpoint.metadata imports os
        content = b"\x80\x04\x8c'torch.distributed.checkpoint.metadata\x94\x8c\tos.system\x94\x93\x8c\x04true\x85R."
    if how != "gone":
        index.write_bytes({"half": content[:10], "empty": b""}.get(how, content))
    with pytest.raises(DamagedError, match=r"."):
        check_index(tmp_path)
    assert not ran.exists()
