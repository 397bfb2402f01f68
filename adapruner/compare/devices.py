"""Which GPUs the cells of a comparison get: each its own, by ``CUDA_VISIBLE_DEVICES``. The driver is asked: nothing here loads torch."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence

from adapruner.errors import ConfigurationError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> tuple[str, ...]:
    """GPUs of this machine that this process may use, by their numbers or identifiers; none where there are none."""
    listed = os.environ.get(VARIABLE)
    if listed is not None:
        return tuple(name for name in map(str.strip, listed.split(",")) if name and name != "-1")
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_list(said)


def check_visible(devices: Sequence[str]) -> Sequence[str]:
    """The devices, as they are named; where the environment says which GPUs this process may use, no others.

    Raises:
        ConfigurationError: naming the first other one.
    """
    if os.environ.get(VARIABLE) is None:
        return devices
    mine = visible_devices()
    other = next((device for device in devices if device not in mine), None)
    if other is not None:
        raise ConfigurationError(f"devices: expected GPUs of {VARIABLE} ({', '.join(mine) or 'none'}), got {other}; name some of these")
    return devices


def parse_list(said: str) -> tuple[str, ...]:
    """Identifiers of ``nvidia-smi -L``; of a GPU that is divided, its instances.

    >>> parse_list("GPU 0: H100 (UUID: GPU-a)\\n  MIG 1g.10gb Device 0: (UUID: MIG-b)\\nGPU 1: H100 (UUID: GPU-c)\\n")
    ('MIG-b', 'GPU-c')
    """
    found: list[str] = []
    for name in re.findall(r"UUID: ([^)\s]+)", said):
        if name.startswith("MIG-") and found and found[-1].startswith("GPU-"):
            found.pop()
        found.append(name)
    return tuple(found)


def least_used(devices: Sequence[str], in_use: Iterable[str | None]) -> str | None:
    """The device with the fewest cells, the first of these; ``None`` without devices.

    >>> least_used(["0", "1", "2"], ["0", "2", "1", "0"])
    '1'
    """
    counts = {device: 0 for device in devices}
    for device in in_use:
        if device in counts:
            counts[device] += 1
    return min(counts, key=lambda device: counts[device]) if counts else None
