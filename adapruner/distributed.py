"""This process among its peers: the few collective operations a run needs. All of them do nothing in a single process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from adapruner.errors import AdaPrunerError, PlanError, StudyError

#: Where launchers say which process this is, before there is a process group.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def is_rank_zero() -> bool:
    """Whether this process may write and print: the only one, or the first of several."""
    dist: Any = sys.modules.get("torch.distributed")  # where nothing has loaded it, there is no process group
    if dist is not None and dist.is_available() and dist.is_initialized():
        return bool(dist.get_rank() == 0)
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if os.environ.get(name, "").isdigit()), 0) == 0


def is_launched() -> bool:
    """Whether a launcher started this process as one of several, on machines that need not share a disk."""
    return any(os.environ.get(name, "").isdigit() for name in _RANK_VARIABLES)


class Ranks:
    """This process among its peers. Every method must be called by all ranks, in the same order."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.active = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if self.active else 0
        self.size: int = dist.get_world_size() if self.active else 1

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if not self.active:
            return value
        box = [value]
        self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if not self.active:
            return [value]
        boxes: list[Any] = [None] * self.size
        self._dist.all_gather_object(boxes, value)
        return boxes

    def on_rank_zero(self, action: Callable[..., Any] | None, *arguments: Any) -> Any:
        """Rank 0 acts, every rank gets the result; an error there is raised everywhere instead of leaving the others waiting.

        Args:
            action: only rank 0's is called; it alone needs one.
        """
        result, error = None, None
        if action is not None and self.rank == 0:
            try:
                result = action(*arguments)
            except Exception as caught:
                if self.size == 1:
                    raise
                known = isinstance(caught, AdaPrunerError)
                error = caught if known else StudyError(f"search: expected rank 0 to keep the study, got {type(caught).__name__}: {caught}")
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        return result

    def add_up(self, *tensors: Any) -> None:
        """Each of the tensors becomes the sum of every rank's, in place; on the device that the process group serves."""
        if self.active:
            for tensor in tensors:
                self._dist.all_reduce(tensor)

    def make_equal(self, *tensors: Any) -> None:
        """Each of the tensors becomes rank 0's, in place."""
        if self.active:
            for tensor in tensors:
                self._dist.broadcast(tensor, src=0)

    def check_same_plan(self, plan_hash: str) -> None:
        """Every rank says which plan it is about to cut by.

        Raises:
            PlanError: on every rank, if they are not all the same.
        """
        hashes = self.gather(plan_hash)
        other = next((rank for rank, found in enumerate(hashes) if found != hashes[0]), None)
        if other is not None:
            raise PlanError(
                f"plan: expected one plan on all {self.size} ranks, got {hashes[0]} on rank 0 and {hashes[other]} on rank {other}; "
                "give all machines the same plan file, model and data"
            )
