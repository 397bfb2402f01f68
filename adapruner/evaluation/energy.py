"""Energy, where the device reports it: NVIDIA's counter of a card's whole consumption, through NVML (the package nvidia-ml-py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

#: The counter moves only every some tens of milliseconds: what is measured must run much longer.
SHORTEST_SECONDS = 1.0


class EnergyMeter:
    """Reads the energy counter of one device (``nvmlDeviceGetTotalEnergyConsumption``, cards from Volta on).

    The counter is the whole card's: nothing else should run on it. Idle power is not subtracted.

    Args:
        device: the device whose energy is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._library, self._handle = _open(device)

    @property
    def works(self) -> bool:
        """Whether the device reports its energy."""
        return self._handle is not None

    def joules_of(self, step: Callable[[], object]) -> float | None:
        """Joules of one call, averaged over as many as fill :data:`SHORTEST_SECONDS`; ``None`` where the device does not report it.

        Args:
            step: what is measured; called at least once. Warm it up before.
        """
        if not self.works:
            return None
        calls, before, start = 0, self._joules(), time.monotonic()
        while calls == 0 or time.monotonic() - start < SHORTEST_SECONDS:
            step()
            calls += 1
            torch.accelerator.synchronize(self.device)
        return (self._joules() - before) / calls

    def _joules(self) -> float:
        return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000.0


def _open(device: torch.device) -> tuple[Any, Any]:
    """NVML and the card's handle there, found by its UUID: NVML does not follow CUDA_VISIBLE_DEVICES."""
    if device.type != "cuda" or find_spec("pynvml") is None:
        return None, None
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError, AttributeError):  # no driver, an older card, a part of one (MIG)
        return None, None
    return pynvml, handle
