"""Keeps recovery's last state on disk, so that a run that was ended at any moment goes on by the same command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from adapruner.argument_checks import typed_as
from adapruner.errors import ConfigurationError
from adapruner.files.atomic import marked, replace_folder, writing
from adapruner.recovery.last_checkpoint import FILE, SETTINGS, random_state, set_random_state, write_checkpoint

_WRITING: dict[str, Any] = {"argument": "checkpoint", "remedy": "make room, the same command goes on from the one before"}


class RecoveryCheckpointCallback(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` in the run folder: every so many steps, at the end, and when a scheduler ends the run.

    On the command line a run whose folder holds such a checkpoint, written under the same settings, goes on from it.

    Args:
        every_n_steps: optimizer steps between two; what a kill can cost at most.
        resume: go on from a checkpoint that an earlier run of the same settings left.
    """

    @typed_as("checkpoint.")
    def __init__(self, every_n_steps: int = 50, resume: bool = True) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ConfigurationError(f"checkpoint.every_n_steps: expected 1 or more, got {every_n_steps}; give 50")
        self.every_n_steps, self.resume = every_n_steps, resume
        self.settings: dict[str, str] = {}  # set by the command line
        self.file = FILE
        self._saved = -1
        self._random: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From here on every checkpoint of this Trainer is whole or not there."""
        if stage != "fit":
            return
        self.file = Path(trainer.default_root_dir) / FILE
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()

    def bytes_to_write(self, trainer: Trainer, weights: int) -> int:
        """Bytes that checkpoints of so many weights take, at least; a later one is written beside the one before."""
        at_once = 0 if trainer.max_steps == 0 else 1 if 0 < trainer.max_steps <= self.every_n_steps else 2
        return at_once * weights * next(trainer.lightning_module.parameters()).element_size()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Dropout goes on where it was."""
        self._saved = trainer.global_step
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After every ``every_n_steps``-th optimizer step."""
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end, so that a kill while measuring or exporting costs no step; Lightning overlooks a SIGTERM in the last one."""
        self._save(trainer)
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A scheduler's SIGTERM comes through between two batches: nothing is lost."""
        if isinstance(exception, SIGTERMException):
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Settings and the state of random numbers."""
        return {SETTINGS: dict(self.settings), "random": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps it for the start of training."""
        self._random = state_dict.get("random")

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved or getattr(trainer, "fast_dev_run", False) or trainer.sanity_checking:
            return
        self._saved = trainer.global_step
        with writing(self.file.parent, **_WRITING):
            self.file.parent.mkdir(exist_ok=True)  # not the run folder with it, were that gone
        if writes_shards(trainer):
            self._save_shards(trainer)
        else:
            trainer.save_checkpoint(self.file)

    def _save_shards(self, trainer: Trainer) -> None:
        """Every rank its own, into a folder that takes the place of the one before when all are written."""
        beside = Path(trainer.strategy.broadcast(str(marked(self.file, "new"))))
        with writing(self.file, **_WRITING):
            beside.mkdir(exist_ok=True)
            trainer.save_checkpoint(beside / self.file.name)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                replace_folder(beside / self.file.name, self.file)
                shutil.rmtree(beside, ignore_errors=True)
            trainer.strategy.barrier()


class WholeFileIO(TorchCheckpointIO):
    """Checkpoints of one file, written beside their place and moved there: a kill leaves the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises:
        ConfigurationError: if there is no room, or no right to write.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        with writing(Path(path), **_WRITING):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, Path(path), **_WRITING)


def writes_shards(trainer: Trainer) -> bool:
    """Whether a checkpoint of this Trainer is a folder, each rank's part a file of its own."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        return strategy._state_dict_type == "sharded"
    return isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint
