"""What a run refuses before any work, of the Trainer, its callbacks and the module; models, data and options: ``search/validation.py``.

Each check is independent of the others and raises its own error, so that everything that does not fit is said at once.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from adapruner.callbacks.listener import check_callbacks, first_of, listeners_of
from adapruner.callbacks.loggers import check_log_files
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.data.calibration_set import fingerprint_tokenizer
from adapruner.data.run_data import RunData
from adapruner.errors import ConfigurationError, DataError, ModelError, check_all
from adapruner.export.staging import check_no_export
from adapruner.pruning.budget import Budget
from adapruner.recovery.checkpoint_contents import check_checkpoint
from adapruner.search.validation import check_model_and_data

#: Most steps that are tried of an optimizer and its scheduler.
_TRIED = 2000
_REFUSED_LAUNCHERS = ("spawn", "fork", "forkserver")


def check_trainer(trainer: Trainer, folder: Path, checkpoint: str | None, loggers: Iterable[Logger]) -> None:
    """Everything that needs no model: launcher, strategy, callbacks, loggers, the run folder, the checkpoint to resume from.

    Raises:
        AdaPrunerError: with all that does not fit.
    """
    check_all(
        partial(check_launcher, trainer),
        partial(check_gathers, trainer),
        partial(check_callbacks, trainer.callbacks),  # type: ignore[attr-defined]
        partial(check_numbers, trainer),
        partial(check_no_export, folder),
        partial(check_log_files, loggers),
        partial(check_checkpoint, checkpoint),
        *(partial(listener.check_before_search, trainer) for listener in listeners_of(trainer)),  # their own setup comes after the search
    )


def check_training(trainer: Trainer, pl_module: LightningModule, model: Any, data: RunData, budget: Budget) -> None:
    """Everything that the loaded model, on its device, decides; then one forward pass of one sample.

    Raises:
        AdaPrunerError: with all that does not fit.
    """
    module: Any = getattr(trainer, "datamodule", None)
    recovery, lengths = first_of(trainer, LoRARecoveryCallback), dict[str, int]()
    for listener in listeners_of(trainer):
        lengths |= listener.sequence_lengths()
    check_model_and_data(
        model,
        data,
        budget,
        lengths,
        lambda: check_tokenizer(pl_module, module),
        lambda: None if recovery is None else recovery.check_trainable(trainer, model),
        lambda: check_optimizer(pl_module, trainer.max_steps),
        lambda: check_training_data(trainer, module),
        *(partial(listener.check_with_model, pl_module, model) for listener in listeners_of(trainer)),
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


def check_processes(trainer: Trainer) -> None:
    """As many processes as a machine has cores, or two: more of them would not come to the work for minutes.

    Raises:
        ConfigurationError: if more are asked for on a CPU.
    """
    most = max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise ConfigurationError(f"trainer.devices: expected at most {most} on this CPU, got {trainer.num_devices}; give 1")


def check_numbers(trainer: Trainer) -> None:
    """Numbers that the Trainer takes and training fails by.

    Raises:
        ConfigurationError: naming the first.
    """
    if trainer.accumulate_grad_batches < 1:
        got = trainer.accumulate_grad_batches
        raise ConfigurationError(f"trainer.accumulate_grad_batches: expected 1 or more, got {got}; give 1 to step after every batch")
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 <= clip < float("inf"):
        raise ConfigurationError(f"trainer.gradient_clip_val: expected a number of 0 or more, got {clip}; give 1.0, or null")


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


def check_optimizer(pl_module: Any, steps: int = 2) -> None:
    """Optimizer and scheduler are built after the search: their options are tried on a parameter of no use.

    Args:
        steps: optimizer steps of the training; a scheduler may be made for fewer.

    Raises:
        ConfigurationError: if they refuse them.
    """
    build = getattr(pl_module, "build_optimizer", None)
    if build is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer, scheduler = build([nn.Parameter(torch.zeros(1))])
            _try_steps(optimizer, scheduler, max(2, min(_TRIED, steps)))
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ConfigurationError(f"model.optimizer, model.scheduler: expected options they take, got: {reason}; correct them") from None


def _try_steps(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> None:
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.zeros_like(parameter)
    if not all(math.isfinite(group["lr"]) for group in optimizer.param_groups):
        raise ValueError(f"a learning rate of {optimizer.param_groups[0]['lr']}")
    for _ in range(steps):
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]  # LBFGS asks for the loss
        if scheduler is not None:
            scheduler.step()


def check_training_data(trainer: Trainer, data: Any) -> None:
    """A data module of ours without recovery text, in a fit that is to train.

    Raises:
        ConfigurationError: as :meth:`adapruner.PruningDataModule.train_dataloader` would after the search.
    """
    trains = trainer.max_steps != 0 and trainer.max_epochs != 0 and trainer.limit_train_batches != 0
    if trains and getattr(data, "recovery_windows", 0) is None:
        raise ConfigurationError("data.recovery: expected data to train on, got null; give recovery sources, or trainer.max_steps 0")


def check_optimized(trainer: Trainer, pl_module: LightningModule) -> None:
    """An optimizer that holds parameters from before the surgery would train nothing, without a word.

    Raises:
        ModelError: if it does.
    """
    alive = {id(p) for p in pl_module.parameters()}
    held = [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]
    if getattr(trainer.strategy, "strategy_name", "") not in ("fsdp", "deepspeed") and any(id(p) not in alive for p in held):
        raise ModelError(
            "optimizer: expected only parameters of the pruned model, got some from before the surgery; "
            "build the optimizer in configure_optimizers"
        )
