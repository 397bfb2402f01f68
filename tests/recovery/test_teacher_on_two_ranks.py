"""The teacher on two ranks: each writes its share, both know all, and their gradients together are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.recovery import teacher as teacher_module
from adapruner.recovery.distillation import Distillation, DistillationConfig, training_loss
from adapruner.recovery.sharding import token_share
from adapruner.recovery.teacher import write_down
from tests.ranks import on_two_ranks
from tests.tiny import random_windows, tiny_llama

CONFIG = DistillationConfig(0.5, top_k=5)


def windows() -> Any:
    found = random_windows(8, 12, seed=4)
    for row in range(8):
        found.labels[row, : row % 5] = -100
    return found


def gradient(folder: Path, rows: list[int], shared: bool) -> torch.Tensor:
    """Of the last layer's FFN, for a student that is not the teacher."""
    model, batches = tiny_llama(), windows()
    targets = write_down(model, batches, CONFIG, folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    batch = {name: getattr(batches, name)[rows] for name in ("input_ids", "attention_mask", "labels")}
    loss = training_loss(model, Distillation(targets, CONFIG), batch)
    (loss * (token_share(batch["labels"]) if shared else 1.0)).backward()
    return model.model.layers[2].mlp.down_proj.weight.grad


def on_rank(rank: int, folder: Path, own_folders: bool) -> dict[str, Any]:
    teacher_module.PART_BYTES = 12 * (8 * CONFIG.top_k + 4)  # one window a file
    written: list[int] = []
    write = teacher_module.write_tensors
    teacher_module.write_tensors = lambda file, *rest: (written.append(int(file.stem)), write(file, *rest))[1]
    found = gradient(folder / str(rank) if own_folders else folder, [rank, rank + 2, rank + 4], True)
    torch.distributed.all_reduce(found)
    return {"written": written, "gradient": found / 2}


@pytest.mark.slow  # two processes are started
@pytest.mark.parametrize("own_folders", [False, True])
def test_two_ranks_are_one(tmp_path: Path, own_folders: bool) -> None:
    for rank in range(2):
        (tmp_path / "run" / str(rank)).mkdir(parents=True)
    first, second = on_two_ranks(on_rank, tmp_path, tmp_path / "run", own_folders)
    alone = gradient(tmp_path / "alone", [0, 1, 2, 3, 4, 5], False)
    torch.testing.assert_close(first["gradient"], alone, rtol=1e-4, atol=1e-6)
    assert torch.equal(first["gradient"], second["gradient"])
    if own_folders:  # machines that share nothing: each has all of it
        assert sorted(first["written"]) == sorted(second["written"]) == list(range(8))
    else:
        assert (sorted(first["written"]), sorted(second["written"])) == ([0, 2, 4, 6], [1, 3, 5, 7])
