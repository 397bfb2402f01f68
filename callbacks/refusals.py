"""What a run refuses before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lightning import Trainer

from adapruner.errors import ConfigurationError

_REFUSED_LAUNCHERS = ("spawn", "fork", "forkserver")


def check_launcher(trainer: Trainer) -> None:
    """Launchers that copy the process after the model was built break after the surgery.

    Raises:
        ConfigurationError: if the Trainer has such a one.
    """
    launcher = str(getattr(trainer.strategy, "_start_method", "") or getattr(trainer.strategy.launcher, "_start_method", ""))
    if launcher in _REFUSED_LAUNCHERS:
        raise ConfigurationError(
            f"trainer.strategy: expected a launcher that starts whole processes, got one that uses {launcher!r}; "
            "choose ddp, or start the processes with torchrun"
        )


def check_folder(folder: Path) -> None:
    """Makes the folder and writes a probe into it.

    Raises:
        ConfigurationError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}"
        probe.write_text(json.dumps({}))
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"folder: expected a folder that can be written, got {folder} ({error.strerror}); choose another"
        ) from error
