"""What every export is told, refused before any work where it cannot be followed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapruner.errors import ConfigurationError, nearest

DTYPES = ("float32", "bfloat16", "float16")
ADAPTERS = ("merged", "folder")


@dataclass(frozen=True)
class ExportOptions:
    """How weights are written.

    Raises:
        ConfigurationError: as :func:`check_options`.
    """

    dtype: str | None = None
    """``float32``, ``bfloat16``, ``float16``; ``None``: the model's own."""
    max_shard_size: str = "5GB"
    """Of one safetensors file."""
    adapters: str = "merged"
    """``merged`` into the weights, or the LoRA recovery in a ``folder`` of its own."""
    pad: bool = False
    """Every layer gets the width of the widest by zeros, for engines that know only stock classes."""

    def __post_init__(self) -> None:
        check_options(self.dtype, self.max_shard_size, self.adapters)


def check_options(dtype: str | None, max_shard_size: str, adapters: str, prefix: str = "") -> None:
    """Refuses values that an export would stumble over after hours.

    Args:
        dtype: ``float32``, ``bfloat16``, ``float16``, or None for the model's own.
        max_shard_size: of one safetensors file: a number and ``KB``, ``MB`` or ``GB``.
        adapters: ``merged`` into the weights, or a ``folder`` of their own.
        prefix: put before the argument's name in the message.

    Raises:
        ConfigurationError: if one is none of these.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigurationError(f"{prefix}dtype: expected float32, bfloat16 or float16, got {dtype!r}; {nearest(dtype, DTYPES)}")
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*[KMGT]?B", max_shard_size.strip(), re.IGNORECASE)
    if size is None or float(size[1]) == 0:
        raise ConfigurationError(f"{prefix}max_shard_size: expected a size such as 2GB, got {max_shard_size!r}; give a number and a unit")
    if adapters not in ADAPTERS:
        raise ConfigurationError(f"{prefix}adapters: expected merged or folder, got {adapters!r}; {nearest(adapters, ADAPTERS)}")
