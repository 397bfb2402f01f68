"""Somebody's Lightning project, and what it takes to prune its model: three callbacks, and one that says what it cost.

    python examples/lightning_project.py

runs on the demo model that comes with adapruner: a few minutes on two cores, no GPU, no download. For a model of yours give --model a
folder or a hub name, and read your own text in ``texts``. Writes runs/lightning_project/.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

import adapruner
from adapruner.callbacks import CompressionReportCallback, LoRARecoveryCallback, PrunedExportCallback, PruningSearchCallback
from adapruner.demo import texts
from adapruner.models.loading import load_language_model, load_tokenizer


class MyModule(LightningModule):
    """A module that has never heard of pruning. Its optimizer takes what requires a gradient, which in recovery is the adapters."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.lm = load_language_model(name)  # AutoModelForCausalLM.from_pretrained(name), but for the demo

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.lm(**batch).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.lm(**batch).loss, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.lm(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=5e-4)


def loader(tokenizer: Any, documents: list[str], shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
    """Windows of 128 tokens, in batches of 8."""
    tokens = tokenizer("\n\n".join(documents), return_tensors="pt").input_ids[0]
    windows = tokens[: len(tokens) // 128 * 128].view(-1, 128)[:256]
    rows: Any = [{"input_ids": window, "labels": window} for window in windows]
    return DataLoader(rows, batch_size=8, shuffle=shuffle)


def main() -> None:
    """Prunes, trains, exports and tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder or a hub name (default: the demo model)")
    parser.add_argument("--fraction", type=float, default=0.3, help="of the attention and FFN parameters, to remove (default: 0.3)")
    parser.add_argument("--trials", type=int, default=32, help="of the search (default: 32)")
    parser.add_argument("--steps", type=int, default=40, help="of recovery (default: 40)")
    parser.add_argument("--folder", default="runs/lightning_project", help="of the run (default: runs/lightning_project)")
    given = parser.parse_args()

    tokenizer = load_tokenizer(given.model)
    module = MyModule(given.model)
    dense = sum(p.numel() for p in module.lm.parameters())
    best = ModelCheckpoint(monitor="val_loss")
    trainer = Trainer(
        default_root_dir=given.folder,
        max_steps=given.steps,
        val_check_interval=max(1, given.steps // 2),
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        accelerator="auto",
        devices=1,
        callbacks=[
            PruningSearchCallback(
                adapruner.Budget(given.fraction),
                adapruner.SearchConfig(n_trials=given.trials, random_sets=0),
                model_attribute="lm",
                calibration={"stdlib": texts()["stdlib"], "torch": texts()["torch"]},
                tokenizer=tokenizer,
                evaluation=texts("test")["stdlib"],
            ),
            LoRARecoveryCallback(model_attribute="lm"),
            CompressionReportCallback(),  # report.html: perplexity before, after the pruning and after the recovery; size and speed
            PrunedExportCallback(f"{given.folder}/model"),
            best,
        ],
    )
    trainer.fit(module, loader(tokenizer, texts("recovery")["stdlib"], shuffle=True), loader(tokenizer, texts("search")["stdlib"]))
    trainer.test(module, loader(tokenizer, texts("test")["stdlib"]), ckpt_path=best.best_model_path)

    small = adapruner.load(f"{given.folder}/model")
    print(f"{dense:,} parameters before, {sum(p.numel() for p in small.parameters()):,} after, in {given.folder}/model")


if __name__ == "__main__":
    main()
