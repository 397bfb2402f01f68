"""``python -m tests.distributed.endings FOLDER``: a stranger's training on ranks whose clocks differ, ended by its time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from adapruner.callbacks import lora_recovery
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.recovery.lora import LoRAConfig
from tests.tiny import random_windows, tiny_llama


class Module(LightningModule):
    """Its learning rate falls to nothing over ten steps."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return self.model(**batch, use_cache=False).loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=10)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Clock(Callback):
    """On the first rank a second passes with every batch, on the second rank three."""

    def __init__(self) -> None:
        self.now, self.rates = 0.0, list[float]()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.now += 1.0 + 2.0 * trainer.global_rank

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def fit(folder: Path, **options: Any) -> None:
    """Leaves what each rank saw in ``rank0.json`` and so on."""
    clock = Clock()
    lora_recovery.time = SimpleNamespace(monotonic=lambda: clock.now)  # type: ignore[assignment]
    recovery = LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0), **options)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=40,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recovery, clock],
    )
    module = Module()
    trainer.fit(module, DataLoader(random_windows(16, 16, seed=4), batch_size=2))  # type: ignore[arg-type]
    weights = sum(float(value.double().abs().sum()) for value in module.model.state_dict().values())
    found = {"steps": trainer.global_step, "rates": clock.rates, "ended_by": recovery.ending.ended_by, "weights": weights}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    fit(Path(sys.argv[1]), **json.loads(sys.argv[2]))
