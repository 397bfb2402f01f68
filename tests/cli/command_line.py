"""The command line in this process, as its tests call it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may depend on the checkout being the working directory."""
    monkeypatch.chdir(tmp_path)


@contextmanager
def interrupted_at_step(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C behind that step of every recovery in the block."""
    inner = LoRARecoveryCallback.on_train_batch_end

    def interrupt(self: Any, trainer: Any, *rest: Any) -> None:
        inner(self, trainer, *rest)
        if trainer.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LoRARecoveryCallback, "on_train_batch_end", interrupt)
        yield


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    with pytest.raises(SystemExit, match=r"^\d$") as caught:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err
