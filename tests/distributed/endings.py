"""``python -m tests.distributed.endings FOLDER STRATEGY OPTIONS``: a recovery on ranks whose clocks differ, ended before its steps are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Callback, Trainer

from adapruner.callbacks import lora_recovery
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.module import PrunableCausalLM
from adapruner.recovery.early_stop import EarlyStopConfig
from adapruner.recovery.lora import LoRAConfig
from tests.distributed.runs import TinyData, two_ranks


class Clock(Callback):
    """On the first rank a second passes with every batch, on the second rank three."""

    def __init__(self) -> None:
        self.now, self.rates = 0.0, list[float]()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.now += 1.0 + 2.0 * trainer.global_rank

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def fit(folder: Path, strategy: str, time_budget: str | None = None, every_n_steps: int = 0) -> None:
    """Leaves what each rank saw in ``rank0.json`` and so on, and the weights beside it; the rate falls to nothing over ten steps."""
    clock = Clock()
    lora_recovery.time = SimpleNamespace(monotonic=lambda: clock.now)  # type: ignore[assignment]
    looks = EarlyStopConfig(every_n_steps, patience=2, batch_size=2)
    recovery = LoRARecoveryCallback(LoRAConfig(r=4, alpha=8, dropout=0.0, also_train=["norms"]), time_budget=time_budget, early_stop=looks)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=40,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[recovery, clock],
        **two_ranks(strategy),
    )
    falling: Any = None if time_budget is None else lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=10)
    module = PrunableCausalLM(str(folder / "model"), dtype="float32", optimizer=lambda p: torch.optim.AdamW(p, lr=3e-2), scheduler=falling)
    trainer.fit(module, datamodule=TinyData(2))
    ending, rank = recovery.ending, trainer.global_rank
    seen = None if ending.looks is None else ending.looks.looks
    best = None if ending.looks is None else ending.looks.best_step
    found = {"steps": trainer.global_step, "rates": clock.rates, "ended_by": ending.ended_by, "looks": seen, "best": best}
    torch.save(module.model.state_dict(), folder / f"rank{rank}.pt")
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    fit(Path(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))
