"""A training loader that goes on in the middle of an epoch, at the batch it would have served next, on any number of ranks.

Why our own: torchdata's ``StatefulDataLoader`` (0.11, tried) asks for the order of samples when its iterator is made, which Lightning does
before it names the epoch, and its state fits only the number of ranks and of worker processes that it was taken with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, DistributedSampler

from adapruner.errors import ConfigurationError

Batch = TypeVar("Batch", covariant=True)


class SharedOrder(DistributedSampler[Any]):
    """One shuffled order for each epoch, the same for every number of ranks; of ``W`` ranks each takes every ``W``-th sample.

    ``W`` ranks with batches of ``B`` thus see in step ``k`` together what one rank with batches of ``W * B`` sees. Every sample is
    served once an epoch, except that a rank which would have none in the last batch gets one twice, since all ranks must take
    equally many steps. In one process the order is that of ``DataLoader(shuffle=True)`` with a generator of this seed.

    Args:
        dataset: what is counted; anything with a length.
        batch_size: samples in a batch of one rank.
    """

    def __init__(self, dataset: Any, batch_size: int, seed: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, seed=seed)
        self.samples, self.batch_size, self.skip = len(dataset), batch_size, 0

    def order(self) -> list[int]:
        """The whole epoch, before it is shared out."""
        generator, order = torch.Generator().manual_seed(self.seed), torch.empty(0)
        for _ in range(self.epoch + 1):
            torch.empty((), dtype=torch.int64).random_(generator=generator)  # DataLoader draws its base seed first
            order = torch.randperm(self.samples, generator=generator)
        return cast("list[int]", order.tolist())

    def __len__(self) -> int:
        """Samples of this rank in an epoch."""
        own = len(range(self.rank, self.samples, self.num_replicas))
        last = self.samples - (self.batches - 1) * self.batch_size * self.num_replicas  # in the last step, of all ranks
        return own + (self.rank >= last)

    @property
    def batches(self) -> int:
        """Batches of each rank in an epoch."""
        return -(-self.samples // (self.batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        """This rank's samples of the present epoch, from ``skip`` on, once."""
        order, skip, self.skip = self.order(), self.skip, 0
        own = order[self.rank :: self.num_replicas]
        return iter([*own, *order[: len(self) - len(own)]][skip:])


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader over a :class:`SharedOrder` with a state, which Lightning keeps in its checkpoints and a plain loop in its own.

    :func:`training_loader` makes one.
    """

    _served = 0
    _from: tuple[int, int] | None = None
    """Epoch and batch to go on from, after a state was loaded."""

    def __iter__(self) -> Any:
        """Nothing is read before the first batch is asked for: only then has Lightning set the epoch."""
        order = self.sampler
        return self._serve(order) if isinstance(order, SharedOrder) else super().__iter__()  # overfit_batches puts in another

    def _serve(self, order: SharedOrder) -> Iterator[Batch]:
        resumed, self._from, epoch = self._from, None, order.epoch
        self._served = resumed[1] if resumed is not None and resumed[0] == epoch else 0
        order.skip = self._served * order.batch_size
        for batch in super().__iter__():
            self._served += 1
            yield batch
        self._served = 0
        order.set_epoch(epoch + 1)  # a loop that does not name its epochs gets another order in each

    def state_dict(self) -> dict[str, int]:
        """Where the epoch stands, in samples of all ranks, so that another number of ranks can go on from there."""
        order = self.sampler
        if not isinstance(order, SharedOrder):
            return {}
        epoch, served = self._from or (order.epoch, self._served)
        return {"epoch": epoch, "seen": served * order.batch_size * order.num_replicas, "samples": order.samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on from there.

        Raises:
            ConfigurationError: if the data has another number of samples, or if the global batch does not divide what was seen.
        """
        order = self.sampler
        if not isinstance(order, SharedOrder) or not state:
            return
        if state["samples"] != order.samples:
            raise ConfigurationError(
                f"data.recovery: expected the {state['samples']} samples that the checkpoint was trained on, got {order.samples}; "
                "resume with the same data"
            )
        step = order.batch_size * order.num_replicas
        epoch, batches = state["epoch"], state["seen"] / step
        if batches >= order.batches:
            epoch, batches = epoch + 1, 0
        if batches != int(batches):
            raise ConfigurationError(
                f"data.batch_size: expected batches that divide the {state['seen']} samples seen in this epoch, got {step} over all "
                "ranks; resume with batch_size times ranks as it was"
            )
        order.set_epoch(epoch)
        self._from = (epoch, int(batches))


def training_loader(
    dataset: Any, batch_size: int, seed: int = 0, *, ranks: int = 1, rank: int = 0, num_workers: int = 0
) -> ResumableLoader[Any]:
    """Batches of this rank in an order that ``seed`` decides, another in each epoch; it can go on in the middle of one.

    Args:
        dataset: anything with a length and items.
        batch_size: samples in a batch of one rank.

    >>> loader = training_loader([10, 20, 30, 40], batch_size=2)
    >>> epoch = [batch.tolist() for batch in loader]
    >>> first = next(iter(again := training_loader([10, 20, 30, 40], batch_size=2)))
    >>> resumed = training_loader([10, 20, 30, 40], batch_size=2)
    >>> resumed.load_state_dict(again.state_dict())
    >>> [first.tolist(), *(batch.tolist() for batch in resumed)] == epoch
    True
    """
    order = SharedOrder(dataset, batch_size, seed, ranks, rank)
    own = torch.Generator().manual_seed(seed)  # without one, worker processes would be seeded from the global generator
    return ResumableLoader(dataset, batch_size, sampler=order, generator=own, num_workers=num_workers, persistent_workers=num_workers > 0)
