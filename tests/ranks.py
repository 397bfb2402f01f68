"""Runs a function in two processes of one gloo group, as two ranks of a run would."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANKS = 2


def on_two_ranks(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(rank, *arguments)`` returned on each rank. ``work`` must be at the top of a module."""
    import torch

    torch.multiprocessing.spawn(_enter, (work, folder, arguments), nprocs=RANKS)
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(RANKS)]


def _enter(rank: int, work: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    try:
        (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(work(rank, *arguments)))
    finally:
        torch.distributed.destroy_process_group()
