"""The runs that are compared: a tiny model through search, surgery and recovery, alone or on several ranks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.fabric.strategies.fsdp as fabric_fsdp
import lightning.pytorch.strategies.fsdp as lightning_fsdp
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel, StateDictType

from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.data_module import PruningDataModule
from adapruner.module import PrunableCausalLM
from adapruner.pruning.budget import Budget
from adapruner.recovery.lora import LoRAConfig
from adapruner.search.config import SearchConfig
from adapruner.search.space import SearchSpace
from tests.tiny import random_windows, word_tokenizer

STEPS, KILLED_AT, TRIALS, GLOBAL_BATCH = 9, 8, 5, 4
SAMPLES = 22
"""Of recovery: six steps an epoch, the last of two samples; the run ends, and is killed, in the second epoch."""


class TinyData(PruningDataModule):
    """Windows made on the spot; of each recovery window another number of tokens counts."""

    def __init__(self, batch_size: int) -> None:
        LightningDataModule.__init__(self)
        self.batch_size, self.num_workers, self.seed = batch_size, 0, 5
        self.tokenizer_name, self.tokenizer_object = None, word_tokenizer()
        self.calibration_windows = random_windows(4, 16, seed=1, sources=("books", "code"))
        self.calibration_windows_at = {16: self.calibration_windows}
        self.calibration_sample_weights, self.evaluation_windows = None, {}
        self.search_windows = random_windows(6, 16, seed=2)
        self.recovery_windows = random_windows(SAMPLES, 16, seed=4)
        for row in range(SAMPLES):
            self.recovery_windows.labels[row, : row % 7] = -100

    calibration_fingerprint = property(lambda self: self.calibration_windows.fingerprint)  # type: ignore[assignment]

    def prepare_data(self) -> None:
        """Nothing to download."""

    def setup(self, stage: str | None = None) -> None:
        """Made already."""


class Numbers(Callback):
    """Which samples every step saw, and a pause in which the run can be killed."""

    def __init__(self, pause_at: int | None = None) -> None:
        self.pause_at, self.seen = pause_at, []  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.pause_at:
            time.sleep(120)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows = (batch["input_ids"][:, None] == data.recovery_windows.input_ids[None]).all(-1).int().argmax(1)
        self.seen.append([trainer.global_step, *rows.tolist()])


class FSDPOnCPU(FSDPStrategy):
    """Lightning refuses its own class without a GPU, by its very type; PyTorch wants only to be told that the device is the CPU.

    What is gathered on a GPU is copied to the CPU and its memory used again; on the CPU there is no copy, so it must not be.
    """

    def _setup_model(self, model: Any) -> Any:
        """As the class does it, with a device in place of a GPU's number."""
        for module in (fabric_fsdp, lightning_fsdp):
            module._get_full_state_dict_context = _full_state_where_it_is  # type: ignore[attr-defined]
        options = {"sharding_strategy": self.sharding_strategy, "mixed_precision": self.mixed_precision_config, **self.kwargs}
        return FullyShardedDataParallel(model, device_id=self.root_device, **options)


def _full_state_where_it_is(module: Any, world_size: int, rank0_only: bool = True) -> Any:
    values, states = FullStateDictConfig(rank0_only=False), FullOptimStateDictConfig(offload_to_cpu=False, rank0_only=False)
    return FullyShardedDataParallel.state_dict_type(module, StateDictType.FULL_STATE_DICT, values, states)


def two_ranks(strategy: str) -> dict[str, Any]:
    """Options of a Trainer on two CPU processes."""
    if strategy == "fsdp2":
        return {"devices": 2, "strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)}
    if strategy.startswith("fsdp1"):
        sharded = strategy.removeprefix("fsdp1 ") == "sharded"
        return {"devices": 2, "strategy": FSDPOnCPU(state_dict_type="sharded" if sharded else "full")}
    return {"devices": 2, "strategy": strategy}


def fit(
    folder: Path,
    model: Path,
    *,
    pause_at: int | None = None,
    plan: Path | None = None,
    resume: Path | None = None,
    dtype: str = "float32",
    **options: Any,
) -> Any:
    """One ``fit``; checkpoints ``step=4.ckpt`` and ``step=8.ckpt`` are left in the folder.

    Returns:
        The trainer, whose callbacks tell what happened.
    """
    space = SearchSpace(metrics=["l2", "gate_fisher"])
    search = PruningSearchCallback(
        Budget(0.3, keep_at_least=0.1),
        SearchConfig(n_trials=TRIALS, chunks=2, random_sets=0, space=space),
        plan=None if plan is None else str(plan),
        statistics_batch_size=2,
    )
    search.checkpoint = None if resume is None else str(resume)  # as the command line sets it
    last = RecoveryCheckpointCallback(every_n_steps=4)
    last.settings = {"what": "a test"}
    lora, numbers = LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0)), Numbers(pause_at)
    defaults: dict[str, Any] = {"devices": 1, "strategy": "auto"}
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[search, lora, numbers, ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1), last],
        **{**defaults, **options},
    )
    module = PrunableCausalLM(str(model), dtype=dtype, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    ranks = trainer.world_size
    trainer.fit(module, datamodule=TinyData(GLOBAL_BATCH // ranks), ckpt_path=resume, weights_only=True)
    return trainer


def describe(trainer: Any, file: Path) -> dict[str, Any]:
    """JSON types; the model's weights go into a file."""
    search, lora, numbers = trainer.callbacks[:3]
    torch.save({k: v.clone() for k, v in trainer.lightning_module.model.state_dict().items()}, file)
    outcome = None if search.found is None else search.found.outcome
    return {
        "plan": search.plan.hash,
        "history": lora.history,
        "tokens": lora.tokens,
        "seen": numbers.seen,
        "widths": [layer.mlp.down_proj.in_features for layer in trainer.lightning_module.model.model.layers],
        "class": type(trainer.lightning_module.model).__name__,
        "resumed": None if outcome is None else outcome.resumed,
        "values": None if outcome is None else [t.value for t in outcome.trials],
    }
