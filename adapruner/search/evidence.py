"""What a search knows about the model and the calibration pool: collected once, kept in the run folder under a fingerprint.

A rerun over the same model and samples reads the files instead of running the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def read_or_collect(file: Path, key: str, collect: Callable[[], Tensors], write: bool) -> tuple[Tensors, bool]:
    """The tensors of ``file`` if it was written under this key, else what ``collect`` gives, kept there for the next time.

    Args:
        key: everything the tensors depend on.
        write: whether this process keeps them (the first rank does).

    Returns:
        The tensors, and whether they came from the file.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("key") == key:
                return {name: opened.get_tensor(name) for name in opened.keys()}, True  # noqa: SIM118
    except Exception:  # absent or damaged: collected again
        pass
    tensors = collect()
    if write:
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"key": key})
        temporary.chmod(0o644)  # safetensors writes for the owner alone
        temporary.replace(file)
    return tensors, False


def is_first_rank() -> bool:
    """Whether this process may write: the only one, or the first of several."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_rank() == 0
