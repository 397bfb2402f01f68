"""What a run refuses before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from adapruner.errors import ConfigurationError, ModelError
from adapruner.recovery.sharding import is_sharded

_REFUSED_LAUNCHERS = ("spawn", "fork", "forkserver")


def check_launcher(trainer: Trainer) -> None:
    """Launchers that copy the process after the model was built break after the surgery; some strategies cannot give it back whole.

    Raises:
        ConfigurationError: if the Trainer has such a one.
    """
    launcher = str(getattr(trainer.strategy, "_start_method", "") or getattr(trainer.strategy.launcher, "_start_method", ""))
    if launcher in _REFUSED_LAUNCHERS:
        raise ConfigurationError(
            f"trainer.strategy: expected a launcher that starts whole processes, got one that uses {launcher!r}; "
            "choose ddp, or start the processes with torchrun"
        )
    if getattr(trainer.strategy, "zero_stage_3", False):
        raise ConfigurationError(
            f"trainer.strategy: expected one that gives the model back whole, got {type(trainer.strategy).__name__} at ZeRO stage 3; "
            "choose ddp, fsdp, or lightning.pytorch.strategies.ModelParallelStrategy (FSDP2)"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy) and trainer.strategy._tensor_parallel_size != 1:
        got = trainer.strategy._tensor_parallel_size
        raise ConfigurationError(
            f"trainer.strategy.tensor_parallel_size: expected 1, got {got}; set it to 1, and data_parallel_size to the number of processes"
        )


def check_gathers(trainer: Trainer) -> None:
    """Under FSDP1 Lightning wraps the module itself; only a module that knows of it gives its model back to be merged and exported.

    Raises:
        ConfigurationError: if the module has no ``make_whole``, which :class:`adapruner.PrunableCausalLM` has.
    """
    if isinstance(trainer.strategy, FSDPStrategy) and not callable(getattr(trainer.lightning_module, "make_whole", None)):
        raise ConfigurationError(
            f"trainer.strategy: expected a module with make_whole under fsdp, got {type(trainer.lightning_module).__name__} without one; "
            "choose ddp, or give it one (adapruner.recovery.sharding.FlatlyShardedModel)"
        )


def check_whole(model: nn.Module) -> None:
    """A model that its module sharded while loading it cannot be cut any more.

    Raises:
        ModelError: if some parameter is spread over ranks.
    """
    if is_sharded(model):
        raise ModelError(
            "configure_model: expected it to build the whole model, got one that is sharded before the surgery; shard it in the "
            "module's setup, which comes after the callbacks'"
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
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"folder: expected a folder that can be written, got {folder} ({error.strerror}); choose another"
        ) from error
