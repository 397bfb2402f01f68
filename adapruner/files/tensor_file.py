"""Tensors in a safetensors file under what they depend on, with a digest of their very bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapruner.files.atomic import replacing
from adapruner.files.digests import DamagedError

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(file: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes them whole or not at all.

    Args:
        key: everything they depend on.

    Raises:
        ConfigurationError: if there is no room, or no right to write.
    """
    from safetensors.torch import save_file

    whole = {name: value.contiguous() for name, value in tensors.items()}
    with replacing(file, sum(value.nbytes for value in whole.values())) as temporary:
        save_file(whole, temporary, {"key": key, "digest": _digest(key, whole)})


def read_tensors(file: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors, one after the other; ``None`` where there is no file, or one of another key.

    Raises:
        DamagedError: if they are not what was written.
    """
    from safetensors import safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            facts: dict[str, str] = opened.metadata() or {}
            if facts.get("key") != key and facts.get("digest"):
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # whatever a damaged header makes of its reader
        raise DamagedError(" ".join(str(error).split()) or type(error).__name__) from None
    if facts.get("digest") != _digest(key, tensors):
        raise DamagedError("its digest is of other content")
    return tensors


def update_digest(digest: Any, name: str, tensor: Tensor) -> None:
    """Feeds a tensor to a ``hashlib`` object: name, type, shape and bits, a part at a time from wherever it is."""
    import torch

    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
    flat = tensor.detach().contiguous().flatten()
    if not flat.is_meta and flat.numel():
        for part in flat.view(torch.uint8).split(1 << 26):
            digest.update(part.cpu().numpy())


def _digest(key: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{key}:".encode())
    for name in sorted(tensors):
        update_digest(digest, name, tensors[name])
    return digest.hexdigest()[:32]
