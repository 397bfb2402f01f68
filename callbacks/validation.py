"""What a run refuses before any work, of the Trainer, its callbacks and the module; models, data and options: ``search/validation.py``.

Each check is independent of the others and raises its own error, so that everything that does not fit is said at once.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from adapruner.data.calibration_set import fingerprint_tokenizer
from adapruner.data.run_data import RunData
from adapruner.errors import ConfigurationError, DataError, ModelError
from adapruner.files.digests import DamagedError
from adapruner.recovery.checkpoint_contents import SHARDED, read_contents
from adapruner.recovery.lora import LoRAConfig, check_adapters
from adapruner.search.validation import check_model_and_data

_REFUSED_LAUNCHERS = ("spawn", "fork", "forkserver")
#: What ``ckpt_path`` may be besides a file.
_LIGHTNING_NAMES = ("last", "best", "hpc")


def check_trainer(trainer: Trainer, checkpoint: str | None) -> list[Callable[[], None]]:
    """The checks that need no model: of the launcher, the strategy, the list of callbacks, the checkpoint to resume from."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [
        partial(check_launcher, trainer),
        partial(check_gathers, trainer),
        partial(check_callbacks, callbacks),
        partial(check_checkpoint, checkpoint),
    ]


def check_training(
    trainer: Trainer, pl_module: LightningModule, model: Any, data: RunData, lora: LoRAConfig | None, lengths: Mapping[str, int]
) -> None:
    """Everything that the loaded model, on its device, decides; then one forward pass of one sample.

    Args:
        lora: where recovery puts its adapters; ``None`` without a recovery.
        lengths: option -> tokens of sequences that callbacks run through the model.

    Raises:
        AdaPrunerError: with all that does not fit.
    """
    module: Any = getattr(trainer, "datamodule", None)
    check_model_and_data(
        model,
        data,
        lengths,
        lambda: check_tokenizer(pl_module, module),
        lambda: None if lora is None else check_adapters(model, lora),
        lambda: check_optimizer(pl_module),
        lambda: check_training_data(trainer, module),
    )


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


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Two searches would prune twice, two recoveries train adapters of adapters.

    Raises:
        ConfigurationError: if one of this package's callbacks stands twice in the list.
    """
    own = [next((k for k in type(c).__mro__ if k.__module__.startswith("adapruner.callbacks.")), None) for c in callbacks]
    twice = [kind.__name__ for kind, times in Counter(own).items() if kind is not None and times > 1]
    if twice:
        raise ConfigurationError(
            f"trainer.callbacks: expected one {twice[0]}, got {own.count(next(k for k in own if k and k.__name__ == twice[0]))}; "
            "leave the others out (the command line adds its own)"
        )


def check_checkpoint(path: str | None) -> None:
    """Training resumes after the search: a checkpoint that is not there would be missed hours later.

    Raises:
        ConfigurationError: if there is no such file, or it is no checkpoint.
    """
    if path is None or path in _LIGHTNING_NAMES or "://" in path or path.startswith("registry"):
        return
    file = Path(path)
    if not file.exists():
        raise ConfigurationError(f"ckpt_path: expected a checkpoint, got {path!r}, which does not exist; correct the path")
    if file.is_dir() and not (file / SHARDED).is_file():
        raise ConfigurationError(f"ckpt_path: expected a checkpoint, got the folder {path!r} without {SHARDED}; name the .ckpt file")
    try:
        read_contents(file)
    except DamagedError as error:
        raise ConfigurationError(
            f"ckpt_path: expected a whole Lightning checkpoint of tensors and plain values, got damage in {path!r} ({error}); take another"
        ) from None


def check_tokenizer(pl_module: Any, data: Any) -> None:
    """A tokenizer of one's own against the model's.

    Raises:
        DataError: if the model has a tokenizer of another vocabulary.
    """
    given, own = getattr(data, "tokenizer_name", None), None
    if given is None or getattr(data, "tokenizer_object", None) is None:
        return
    with suppress(ModelError):  # a model without one takes what it gets
        own = getattr(pl_module, "tokenizer", None)
    if own is not None and fingerprint_tokenizer(own) != fingerprint_tokenizer(data.tokenizer_object):
        raise DataError(f"data.tokenizer: expected the model's vocabulary, got another in {given!r}; leave data.tokenizer out")


def check_optimizer(pl_module: Any) -> None:
    """Optimizer and scheduler are built after the search: their options are tried on a parameter of no use.

    Raises:
        ConfigurationError: if they refuse them.
    """
    build = getattr(pl_module, "build_optimizer", None)
    if build is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build([nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ConfigurationError(f"model.optimizer, model.scheduler: expected options they take, got: {reason}; correct them") from None


def check_training_data(trainer: Trainer, data: Any) -> None:
    """A data module of ours without recovery text, in a fit that is to train.

    Raises:
        ConfigurationError: as :meth:`adapruner.PruningDataModule.train_dataloader` would after the search.
    """
    trains = trainer.max_steps != 0 and trainer.max_epochs != 0 and trainer.limit_train_batches != 0
    if trains and getattr(data, "recovery_windows", 0) is None:
        raise ConfigurationError("data.recovery: expected data to train on, got null; give recovery sources, or trainer.max_steps 0")
