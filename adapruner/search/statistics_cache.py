"""Statistics of the model on the calibration pool: collected once, kept in the run folder under what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from adapruner.distributed import Ranks
from adapruner.files.digests import DamagedError
from adapruner.files.tensor_file import read_tensors, write_tensors
from adapruner.progress import announce

Tensors = dict[str, Tensor]


def read_or_collect(file: Path | None, key: str, collect: Callable[[], Tensors], write: bool) -> tuple[Tensors, bool]:
    """The tensors of ``file`` if it was written under this key, else what ``collect`` gives, kept there for the next time.

    Of several ranks, which must all call it, the first one reads; the others get its tensors, or collect with it.

    Args:
        file: ``None`` keeps nothing.
        key: everything the tensors depend on.
        write: whether this process keeps them (the first rank does).

    Returns:
        The tensors, and whether they came from the file.

    Raises:
        ConfigurationError: if they cannot be kept.
    """
    ranks = Ranks()
    found = _read(file, key) if file is not None and ranks.rank == 0 else None
    names = ranks.broadcast(None if found is None else list(found))
    if names is not None:
        return {name: ranks.broadcast(None if found is None else found[name]) for name in names}, True
    tensors = collect()
    ranks.on_rank_zero(write_tensors if write and file is not None else None, file, key, tensors)
    return tensors, False


def _read(file: Path, key: str) -> Tensors | None:
    try:
        return read_tensors(file, key)
    except DamagedError as error:
        announce(f"{file} is damaged ({error}): its contents are collected again")
        return None
