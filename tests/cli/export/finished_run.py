"""A real, tiny ``fit`` at its end, and what a test may do to what it left."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adapruner.cli import main

ROOT = Path(__file__).parents[2]


IDS = torch.arange(4, 40)[None]


@dataclass(frozen=True)
class Finished:
    """A run at its end."""

    folder: Path
    base: Path
    logits: torch.Tensor


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits.float()


def checkpoint_of(run: Finished) -> Path:
    return next(run.folder.rglob("*.ckpt"))


def change_checkpoint(run: Finished, **changes: Any) -> None:
    record = torch.load(checkpoint_of(run), weights_only=True)
    torch.save({key: value for key, value in {**record, **changes}.items() if value is not None}, checkpoint_of(run))


def export(*arguments: Any) -> None:
    main(["export", *map(str, arguments)])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def point_to(base: str) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["model"]["name_or_path"] = base
    Path("run/config.yaml").write_text(yaml.safe_dump(config))


def only_model(run: Finished) -> None:
    checkpoint_of(run).unlink()


def refused(capsys: pytest.CaptureFixture[str], message: str, *arguments: Any) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^2$"):
        export(*arguments)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.match(f"adapruner: error: {message}", lines[0]), lines[0]
