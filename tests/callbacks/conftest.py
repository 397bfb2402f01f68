"""A project that knows nothing of adapruner: its module keeps the language model under another name, its data are lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.pruning.budget import Budget
from adapruner.recovery.lora import LoRAConfig
from adapruner.search.space import SearchSpace
from adapruner.search.study import SearchConfig
from tests.tiny import random_windows, tiny_llama

FFN = 480


class ForeignModule(LightningModule):
    """Somebody else's training code."""

    def __init__(self) -> None:
        super().__init__()
        self.language = tiny_llama(intermediate_size=FFN)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return self.language(**batch, use_cache=False).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


class ForeignData(LightningDataModule):
    """Two attributes are all that a search asks for; the third is for the report."""

    def __init__(self) -> None:
        super().__init__()
        self.calibration_windows = random_windows(4, 16, seed=1, sources=("books", "code"))
        self.search_windows = random_windows(6, 16, seed=2)
        self.evaluation_windows = {("held out", 16): random_windows(6, 16, seed=3), ("held out", 32): random_windows(3, 32, seed=3)}

    def train_dataloader(self) -> Any:
        return DataLoader(random_windows(16, 16, seed=4), batch_size=4)  # type: ignore[arg-type]


def search_callback(**options: Any) -> PruningSearchCallback:
    space = SearchSpace(metrics=["l2", "gate_fisher"])
    defaults: dict[str, Any] = {
        "budget": Budget(0.3),
        "search": SearchConfig(n_trials=6, chunks=2, space=space),
        "model_attribute": "language",
    }
    return PruningSearchCallback(**{**defaults, **options})


def all_callbacks(**options: Any) -> list[Any]:
    return [
        search_callback(**options),
        LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0), model_attribute="language"),
        CompressionReportCallback(compare=["l2", "random"], latency_seq_len=16, latency_repeats=1),
        PrunedExportCallback(),
    ]


def foreign_trainer(folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 4,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(callbacks=callbacks, **{**defaults, **options})


class Run:
    """One ``fit`` and everything it left behind."""

    def __init__(self, folder: Path, callbacks: list[Any], ckpt_path: Any = None, **options: Any) -> None:
        self.folder, self.callbacks = folder, callbacks
        self.module, self.data = ForeignModule(), ForeignData()
        self.trainer = foreign_trainer(folder, callbacks, **options)
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path)

    @property
    def search(self) -> PruningSearchCallback:
        return next(c for c in self.callbacks if isinstance(c, PruningSearchCallback))

    @property
    def widths(self) -> list[int]:
        return [layer.mlp.down_proj.in_features for layer in self.module.language.model.layers]


@pytest.fixture(scope="package")
def fit() -> Callable[..., Run]:
    return Run


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All four callbacks, from search to export, the export checked in another process."""
    return Run(tmp_path_factory.mktemp("finished"), all_callbacks())
