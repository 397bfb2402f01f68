"""What is freed leaves the process, where glibc would keep it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from adapruner import freed_memory
from adapruner.freed_memory import give_back_freed_memory

MIB = 2**20


def resident() -> int:
    """Bytes of memory that the process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps nothing, or in another way")
def test_freed_tensors_between_others_leave_the_process() -> None:
    torch.ones(30 * MIB // 4)  # once such a block is freed, glibc takes smaller ones from its heap
    tensors = [torch.ones(2 * MIB // 4) for _ in range(100)]
    between = tensors[9::10]
    del tensors
    before = resident()
    give_back_freed_memory()
    assert before - resident() > 100 * MIB
    assert sum(float(tensor.sum()) for tensor in between) == 10 * 2 * MIB // 4


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: object())
    freed_memory._trim.cache_clear()
    give_back_freed_memory()
    monkeypatch.undo()
    freed_memory._trim.cache_clear()
