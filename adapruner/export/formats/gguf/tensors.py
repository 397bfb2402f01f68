"""The tensors of an export under llama.cpp's names, in its order of rows and in its types, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapruner.errors import ModelError
from adapruner.export.formats.gguf.folder import ExportedFolder
from adapruner.export.formats.gguf.layout import Layout

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as torch has it; the file itself says columns first."""
    dtype: torch.dtype
    """float32 for vectors: llama.cpp adds and multiplies them in no other type."""
    load: Callable[[], Tensor]
    """The values, in any type."""

    @property
    def bytes(self) -> int:
        """Size in the file without padding."""
        return math.prod(self.shape) * self.dtype.itemsize

    def values(self) -> Tensor:
        """The values in the entry's type.

        Raises:
            ModelError: if they do not fit float16.
        """
        loaded = self.load()
        cast = loaded.to(self.dtype).contiguous()
        if self.dtype == torch.float16 and not torch.isfinite(cast).all():
            raise ModelError(f"dtype: expected weights within the range of float16, got larger ones in {self.name}; use bfloat16")
        return cast


def list_entries(folder: ExportedFolder, layout: Layout, dtype: torch.dtype, names: Any) -> list[Entry]:
    """Everything the file will hold; nothing is read yet.

    Args:
        folder: the export.
        layout: of the same folder.
        dtype: of the matrices.
        names: ``gguf.TensorNameMap`` of the architecture.

    Raises:
        ModelError: if there is a tensor that llama.cpp does not know.
    """
    found = list(_rope_factors(layout))
    for name, shape in folder.shapes.items():
        if layout.architecture.fused and ".self_attn." in name and name.split(".")[-2] in ("q_proj", "k_proj", "v_proj"):
            if ".q_proj." in name:
                found.append(_fused(folder, name, dtype))
            continue
        if name == "lm_head.weight" and folder.tied:
            continue
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"weights: expected the tensors of {layout.architecture.name}, got {name}; merge adapters first")
        found.append(Entry(known, shape, dtype if len(shape) > 1 else torch.float32, _loader(folder, layout, name)))
    return found


def rotate_in_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Reorders the rows of each head so that the channels which are rotated together lie beside each other.

    Args:
        tensor: ``[heads * d, ...]``, a weight or a bias of q or k, with channels i and i + d / 2 rotated together.
        heads: of q or of k.

    >>> rotate_in_pairs(torch.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _loader(folder: ExportedFolder, layout: Layout, name: str) -> Callable[[], Tensor]:
    parts = name.split(".")
    heads = {"q_proj": layout.heads, "k_proj": layout.kv_heads}.get(parts[-2])
    if heads is None or not layout.architecture.pairs:
        return lambda: folder.tensor(name)
    return lambda: rotate_in_pairs(folder.tensor(name), heads[int(parts[2])])


def _fused(folder: ExportedFolder, query: str, dtype: torch.dtype) -> Entry:
    names = [query.replace(".q_proj.", f".{role}.") for role in ("q_proj", "k_proj", "v_proj")]
    shape = (sum(folder.shapes[name][0] for name in names), folder.shapes[query][1])
    return Entry(f"blk.{query.split('.')[2]}.attn_qkv.weight", shape, dtype, lambda: torch.cat([folder.tensor(name) for name in names]))


def _rope_factors(layout: Layout) -> Iterator[Entry]:
    """What each rotary frequency is divided by, ``[head_dim / 2]``: Llama 3's interpolation by wavelength."""
    rope = layout.rope
    if rope["rope_type"] != "llama3":
        return
    base, dim = float(rope["rope_theta"]), layout.head_dim
    wavelength = 2 * math.pi * base ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    low, high, factor = float(rope["low_freq_factor"]), float(rope["high_freq_factor"]), float(rope["factor"])
    # 1 where a frequency turns more than ``high`` times within the original context, 0 where less than ``low`` times.
    smooth = ((float(rope["original_max_position_embeddings"]) / wavelength - low) / (high - low)).clamp(0, 1)
    factors = 1 / ((1 - smooth) / factor + smooth)
    yield Entry("rope_freqs.weight", (dim // 2,), torch.float32, lambda: factors)
