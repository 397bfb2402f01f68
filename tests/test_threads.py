"""Threads follow what the process may use, never how busy the machine is; the environment goes before both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapruner import threads
from adapruner.threads import choose_threads, usable_cores


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 2), ("100000 100000", 1), ("10000 100000", 1), ("max 100000", 8), ("", 8), ("100000 0", 8), (None, 8)],
)
def test_a_quota_counts_whole_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    (tmp_path / "self").write_text("0::/\n")
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path, tmp_path / "self") == cores


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/slurm/job/step", {"slurm/job/cpu.max": "300000 100000", "slurm/job/step/cpu.max": "max 100000"}, 3),
        ("4:cpu,cpuacct:/docker/x", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("4:memory:/a", {"memory/a/cpu.max": "100000 100000"}, 8),
        ("rubbish", {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_groups_around_its_own_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    (tmp_path / "self").write_text(membership)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert usable_cores(tmp_path / "groups", tmp_path / "self") == cores
    assert usable_cores(tmp_path / "groups", tmp_path / "none") == 8


def test_fewer_threads_where_fewer_cores_are_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(4)
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    assert choose_threads() == "computes on 1 thread of 1 core; OMP_NUM_THREADS chooses another number"
    assert torch.get_num_threads() == 1


def test_no_more_threads_than_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "usable_cores", lambda: 64)
    choose_threads()
    assert torch.get_num_threads() == 2


def test_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads() == "computes on 3 threads of 2 cores, as OMP_NUM_THREADS says"
    assert torch.get_num_threads() == 3


def test_a_busy_machine_is_told_of_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(4)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.9, 0.0, 0.0))
    assert choose_threads().endswith("the machine is busy (load 2.9): OMP_NUM_THREADS=1 may be faster")
    assert torch.get_num_threads() == 4
