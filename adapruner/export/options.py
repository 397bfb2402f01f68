"""The options that all exports share, checked before any work."""

from __future__ import annotations

import re
from dataclasses import InitVar, dataclass

from adapruner.argument_checks import check_fields
from adapruner.errors import ConfigurationError, nearest

DTYPES = ("float32", "bfloat16", "float16")
ADAPTERS = ("merged", "folder")


@dataclass(frozen=True)
class ExportOptions:
    """How weights are written.

    Raises:
        ConfigurationError: if a value is none of those below, or a model is to be padded whose adapters stay apart.

    >>> ExportOptions(max_shard_size="big")
    Traceback (most recent call last):
    adapruner.errors.ConfigurationError: max_shard_size: expected a size such as 2GB, got 'big'; give a number and a unit
    """

    dtype: str | None = None
    """``float32``, ``bfloat16``, ``float16``; ``None``: the model's own."""
    max_shard_size: str = "5GB"
    """Size of one safetensors file: a number and ``KB``, ``MB`` or ``GB``."""
    adapters: str = "merged"
    """``merged`` into the weights, or the LoRA recovery in a ``folder`` of its own."""
    pad: bool = False
    """Every layer gets the width of the widest by zeros, for engines that know only stock classes."""
    prefix: InitVar[str] = ""
    """Put before the argument's name in messages."""

    def __post_init__(self, prefix: str) -> None:
        check_fields(self, prefix)
        if self.dtype is not None and self.dtype not in DTYPES:
            got = f"got {self.dtype!r}; {nearest(self.dtype, DTYPES)}"
            raise ConfigurationError(f"{prefix}dtype: expected float32, bfloat16 or float16, {got}")
        size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*[KMGT]?B", self.max_shard_size.strip(), re.IGNORECASE)
        if size is None or float(size[1]) == 0:
            got = f"got {self.max_shard_size!r}; give a number and a unit"
            raise ConfigurationError(f"{prefix}max_shard_size: expected a size such as 2GB, {got}")
        if self.adapters not in ADAPTERS:
            raise ConfigurationError(
                f"{prefix}adapters: expected merged or folder, got {self.adapters!r}; {nearest(self.adapters, ADAPTERS)}"
            )
        if self.pad and self.adapters == "folder":
            got = "adapters: folder" if prefix else "--adapters folder"
            raise ConfigurationError(f"{prefix}pad: expected adapters merged, got {got}; leave one of the two out")
