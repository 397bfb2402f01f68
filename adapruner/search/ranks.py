"""The few collective operations a search needs; all of them do nothing in a single process."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


class Ranks:
    """This process among its peers. Every method must be called by all ranks, in the same order."""

    def __init__(self) -> None:
        self.active = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if self.active else 0
        self.size: int = dist.get_world_size() if self.active else 1

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if not self.active:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if not self.active:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes
