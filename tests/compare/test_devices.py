from __future__ import annotations

from pathlib import Path

import pytest

from adapruner.compare.devices import VARIABLE, check_visible, visible_devices
from adapruner.errors import ConfigurationError


@pytest.mark.parametrize(("value", "devices"), [("0,2", ("0", "2")), ("", ()), ("-1", ()), (" GPU-a , MIG-b ", ("GPU-a", "MIG-b"))])
def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, value: str, devices: tuple[str, ...]) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert visible_devices() == devices


@pytest.mark.parametrize(
    ("script", "devices"),
    [("echo 'GPU 0: NVIDIA H100 (UUID: GPU-a)'; echo 'GPU 1: NVIDIA H100 (UUID: GPU-b)'", ("GPU-a", "GPU-b")), ("exit 9", ())],
)
def test_else_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, devices: tuple[str, ...]) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == devices


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == ()


def test_nobody_takes_the_gpus_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2,3")
    assert check_visible(["3"]) == ["3"]
    with pytest.raises(ConfigurationError, match=r"devices: expected GPUs of CUDA_VISIBLE_DEVICES \(2, 3\), got 0"):
        check_visible(["0", "3"])
    monkeypatch.delenv(VARIABLE)
    assert check_visible(["0"]) == ["0"]
