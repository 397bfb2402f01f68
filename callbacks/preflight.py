"""Whether model, data, options and callbacks fit each other: all that can be known before any statistic is collected.

Each check is independent of the others and raises its own error; :func:`check_fit` says all of them at once.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn

from adapruner.callbacks.recovery_checkpoint import SHARDED
from adapruner.data.calibration_set import fingerprint_tokenizer
from adapruner.errors import AdaPrunerError, ConfigurationError, DataError, ModelError, check_all, nearest
from adapruner.importance.finiteness import check_activations, check_weights
from adapruner.recovery.lora import LoRAConfig

#: What ``ckpt_path`` may be besides a file.
_LIGHTNING_NAMES = ("last", "best", "hpc")


def check_fit(trainer: Trainer, pl_module: LightningModule, model: Any) -> None:
    """Everything that the loaded model, on its device, decides; then one forward pass of one sample.

    Raises:
        AdaPrunerError: with all that does not fit.
    """
    data: Any = getattr(trainer, "datamodule", None)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    check_all(
        lambda: check_lengths(model, data, callbacks),
        lambda: check_tokens(model, data),
        lambda: check_tokenizer(pl_module, data),
        lambda: check_weights(model),
        lambda: check_adapters(model, callbacks),
        lambda: check_optimizer(pl_module),
        lambda: check_training_data(trainer, data),
    )
    if hasattr(data, "calibration_windows"):
        check_activations(model, data.calibration_windows)


def accept(trainer: Trainer) -> None:
    """Nothing is left to refuse: callbacks that want to write something down before the heavy work may do so."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        listener = getattr(callback, "on_search_accepted", None)
        if listener is not None:
            listener(trainer)


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
        torch.load(file / SHARDED if file.is_dir() else file, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # a damaged pickle can fail in any way
        raise ConfigurationError(
            f"ckpt_path: expected a whole Lightning checkpoint of tensors and plain values, got damage in {path!r}; take another"
        ) from None


def check_lengths(model: Any, data: Any, callbacks: Sequence[Any]) -> None:
    """Windows against the positions that the model knows.

    Raises:
        ConfigurationError: naming every option whose sequences are too long.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    lengths = {f"data.{name}": windows.input_ids.shape[1] for name, windows in _window_sets(data)}
    for callback in callbacks:
        if hasattr(callback, "latency_seq_len"):
            lengths["report.latency_seq_len"] = callback.latency_seq_len
        if getattr(callback, "speed_batches", None):
            lengths["report.speed_seq_lens"] = max(callback.speed_seq_lens)
        if getattr(getattr(callback, "budget", None), "of", "") == "latency":
            lengths["budget.seq_len"] = callback.budget.seq_len
    long = {name: length for name, length in lengths.items() if isinstance(limit, int) and length > limit}
    if long:
        names = ", ".join(long)
        raise ConfigurationError(f"{names}: expected at most the model's {limit} positions, got {max(long.values())}; shorten them")


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


def check_adapters(model: nn.Module, callbacks: Sequence[Any]) -> None:
    """Names of layers that get adapters: peft passes over one that is misspelt, as long as another is there.

    Raises:
        ConfigurationError: if no linear layer has such a name.
    """
    layers = [n for n, m in model.named_modules() if next(m.children(), None) is None and getattr(m, "weight", None) is not None]
    for settings in (c.lora for c in callbacks if isinstance(getattr(c, "lora", None), LoRAConfig)):
        targets = settings.target_modules
        if targets == "all-linear":
            continue
        if isinstance(targets, str):  # a pattern of whole names
            unknown = [] if any(re.fullmatch(targets, name) for name in layers) else [targets]
        else:
            unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in layers)]
        if unknown or not targets:
            got = unknown[0] if unknown else "none"
            hint = nearest(got, {name.split(".")[-1] for name in layers})
            raise ConfigurationError(f"recovery.lora.target_modules: expected layers of the model, got {got!r}; {hint}")


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


@contextmanager
def no_empty_folders(root: Path) -> Iterator[None]:
    """What is refused leaves no empty folder behind: loggers make theirs before anything is checked."""
    root = root.absolute()
    there = {path for path in (*root.rglob("*"), root, *root.parents) if path.is_dir()}
    try:
        yield
    except AdaPrunerError:
        for path in (*sorted(root.rglob("*"), reverse=True), root, *root.parents):
            if path not in there and path.is_dir():
                with suppress(OSError):  # not empty
                    path.rmdir()
        raise


def _window_sets(data: Any) -> Iterator[tuple[str, Any]]:
    """Name of the option that made the set -> its windows."""
    for length, windows in getattr(data, "calibration_windows_at", {}).items():
        first = length == data.calibration_windows.input_ids.shape[1]
        yield f"calibration.{'seq_len' if first else 'other_seq_lens'}", windows
    if not hasattr(data, "calibration_windows_at") and hasattr(data, "calibration_windows"):
        yield "calibration.seq_len", data.calibration_windows
    for name in ("search", "recovery"):
        windows = getattr(data, f"{name}_windows", None)
        if windows is not None:
            yield f"{name}.seq_len", windows
    for (name, _), windows in getattr(data, "evaluation_windows", {}).items():
        yield f"evaluation.{name}.windows", windows
