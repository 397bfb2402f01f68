"""The finished run that every file of this folder exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from adapruner.export.run_folder import CONFIG_NOTE
from adapruner.files.digests import seal_lines
from tests.cli.export.finished_run import (
    Finished,
    logits_of,
)
from tests.tiny import random_windows, save_tiny


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Search, surgery, four steps of LoRA, report and export; ``config.yaml`` holds what the command line would write."""
    from lightning import LightningDataModule, Trainer

    from adapruner.callbacks.compression_report import CompressionReportCallback
    from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
    from adapruner.callbacks.pruned_export import PrunedExportCallback
    from adapruner.callbacks.pruning_search import PruningSearchCallback
    from adapruner.module import PrunableCausalLM
    from adapruner.pruning.budget import Budget
    from adapruner.recovery.lora import LoRAConfig
    from adapruner.search.space import SearchSpace
    from adapruner.search.study import SearchConfig

    class Data(LightningDataModule):
        calibration_windows = random_windows(4, 16, seed=1)
        search_windows = random_windows(6, 16, seed=2)
        evaluation_windows = {("held out", 16): random_windows(6, 16, seed=3)}  # noqa: RUF012

        def train_dataloader(self) -> Any:
            return DataLoader(random_windows(16, 16, seed=4), batch_size=4)  # type: ignore[arg-type]

    top = tmp_path_factory.mktemp("export-command")
    base, folder = save_tiny(top / "base", intermediate_size=480, initializer_range=0.15), top / "run"
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A base model\n")
    module = PrunableCausalLM(str(base), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-2))
    callbacks = [
        PruningSearchCallback(Budget(0.3), SearchConfig(n_trials=2, chunks=2, space=SearchSpace(metrics=["l2", "gate_fisher"]))),
        LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0)),
        CompressionReportCallback(latency_seq_len=16, latency_repeats=1),
        PrunedExportCallback(verify=False),
    ]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", devices=1, max_steps=4, callbacks=callbacks, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, datamodule=Data())
    config = {"seed_everything": 5, "model": {"name_or_path": str(base), "dtype": "auto", "revision": None}, "data": {"seed": 3}}
    (folder / "config.yaml").write_text(seal_lines(yaml.safe_dump(config), CONFIG_NOTE))
    return Finished(folder, base, logits_of(module.model))


@pytest.fixture
def run(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """A copy of the run that a test may damage, in the working directory as ``run``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.folder, tmp_path / "run")
    return Finished(Path("run"), finished.base, finished.logits)
