"""Hidden states of many windows, on the model's device or in files that are mapped into memory.

A refit keeps the residual stream of all its windows. Thousands of windows of a large model are more than a device holds; a mapped file
takes none of its memory, and of the machine's only what the system has to spare.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from adapruner.errors import ConfigurationError

#: Hidden states of all windows, per batch ``[batch, seq_len, width]``.
HiddenStates = MutableSequence[Tensor]


class MappedStates(MutableSequence[Tensor]):
    """Batches in one file. What is taken out is on ``device``; what is put in is copied.

    Args:
        file: not there yet, alone in its folder. Neither has a name any more once it is mapped, so that a killed process leaves nothing.
        shapes: of every batch.
        dtype: of what is put in.
        device: that batches are taken out to.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     own = Path(tempfile.mkdtemp(dir=folder))
    ...     states = MappedStates(own / "states", [(2, 3, 4), (1, 3, 4)], torch.float32, torch.device("cpu"))
    ...     states[1] = torch.ones(1, 3, 4)
    ...     float(states[1].sum()), sorted(Path(folder).iterdir())
    (12.0, [])
    """

    def __init__(self, file: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
        flat = torch.from_file(str(file), shared=True, size=sum(map(prod, shapes)), dtype=dtype)
        with suppress(OSError):  # where a mapped file cannot lose its name, it goes with its folder
            file.unlink()
            file.parent.rmdir()
        parts = flat.split([prod(shape) for shape in shapes])
        self._parts = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        self._device = device

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> MutableSequence[Tensor]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        part = self._parts[index]
        return part.clone() if self._device.type == "cpu" else part.to(self._device)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._parts[index].copy_(value)

    def __delitem__(self, index: Any) -> None:
        raise TypeError("a batch of a mapped file cannot be taken out of it")

    def insert(self, index: int, value: Tensor) -> None:
        """A file has the batches that it was made for."""
        raise TypeError("a mapped file has room for the batches that it was made for")


@dataclass
class StateStore:
    """Where the hidden states of some windows are kept: one decision for all of a refit's streams."""

    shapes: list[tuple[int, int]]
    """Per batch, windows and ``seq_len``."""
    folder: Path | None = None
    """Of the mapped files; ``None`` keeps states where they are computed."""
    _opened: list[Any] = field(default_factory=list)

    def empty(self, width: int, like: Tensor) -> HiddenStates:
        """Room for states ``[batch, seq_len, width]`` of all batches, of the dtype and on the device of ``like``; nothing in it yet."""
        if self.folder is None:
            return [torch.empty(0)] * len(self.shapes)
        opened = tempfile.TemporaryDirectory(prefix="adapruner-refit-", dir=self.folder, ignore_cleanup_errors=True)
        self._opened.append(opened)  # where its file keeps its name, it is removed with the store
        return MappedStates(Path(opened.name) / "states", [(*shape, width) for shape in self.shapes], like.dtype, like.device)

    def copy_of(self, states: HiddenStates) -> HiddenStates:
        """The same states once more, to be moved on by themselves."""
        if self.folder is None:
            return list(states)
        copied = self.empty(states[0].shape[-1], states[0])
        for batch, hidden in enumerate(states):
            copied[batch] = hidden
        return copied


def folder_with_room(folder: str | None, gib: float) -> Path:
    """The folder for mapped files, the system's own for temporary files where none is named.

    Raises:
        ConfigurationError: if it is not there, or its disk has not that much room.
    """
    where = Path(folder or tempfile.gettempdir())
    if not where.is_dir():
        raise ConfigurationError(
            f"reconstruction.states_folder: expected a folder, got {where}, which is not there; make it, or name another"
        )
    free = shutil.disk_usage(where).free / 2**30
    if free < gib:
        raise ConfigurationError(
            f"reconstruction.states_folder: expected {gib:.1f} GiB for the hidden states of the refit in {where}, got {free:.1f}; name a "
            "folder on another disk, or give fewer windows"
        )
    return where
