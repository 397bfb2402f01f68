"""An export goes on living with other people's tools: peft, TRL, a Lightning module that knows nothing of us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapruner
from adapruner.export.folder import export_model
from adapruner.models.tracing import trace_structure
from adapruner.models.units import count_parameters
from adapruner.pruning.surgery import prune_model
from tests.tiny import random_windows, tiny_llama, word_tokenizer

from .cases import UNEVEN, plan_for

WINDOWS = random_windows(8, 16, seed=4)
IDS = random_windows(2, 16, seed=3).input_ids
#: As a stranger loads the folder, with the code in it where it needs some, and as we do.
LOADERS: dict[str, Callable[[Path], Any]] = {
    "the folder's own code": lambda folder: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    "adapruner.load": lambda folder: adapruner.load(folder),
}
EVERY_WAY = pytest.mark.parametrize("loader", LOADERS)
EVERY_WIDTH = pytest.mark.parametrize("widths", ["uniform", "irregular"])


def exported(folder: Path, widths: str) -> Path:
    model = tiny_llama(intermediate_size=24, num_attention_heads=4, num_key_value_heads=4)
    structure = trace_structure(model)
    plan = plan_for(model, structure, *(([2, 2, 2], [16, 16, 16]) if widths == "uniform" else UNEVEN))
    prune_model(model, structure, plan)
    assert export_model(model, word_tokenizer(), structure, plan, folder).stock == (widths == "uniform")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS.to(model.device)).logits.cpu()


def check_saved(folder: Path, model: Any, before: torch.Tensor) -> None:
    """It learnt something, and both loaders give what was saved."""
    expected = logits(model)
    assert float((expected - before).abs().max()) > 1e-3
    for name, load in LOADERS.items():
        again = load(folder)
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5, msg=name)
        assert count_parameters(again) == count_parameters(model), name
    again = adapruner.prune(str(folder), calibration=WINDOWS.input_ids, budget=0.2, recipe=adapruner.Recipe({"l2": 1.0}), progress=False)
    assert count_parameters(again.model) < count_parameters(model)  # and it is pruned again, by a budget of what is there


@EVERY_WAY
@EVERY_WIDTH
def test_peft_trains_adapters_keeps_them_apart_and_merges_them(tmp_path: Path, widths: str, loader: str) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    folder = exported(tmp_path / "export", widths)
    model = LOADERS[loader](folder)
    before = logits(model)
    adapted: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(4):
        adapted.train()(**WINDOWS[:]).loss.backward()  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted)
    for load in LOADERS.values():
        apart = PeftModel.from_pretrained(load(folder), tmp_path / "adapter")
        torch.testing.assert_close(logits(apart), expected, rtol=0, atol=1e-5)
    merged: Any = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    word_tokenizer().save_pretrained(tmp_path / "merged")
    check_saved(tmp_path / "merged", merged, before)


@EVERY_WAY
@EVERY_WIDTH
def test_trl_fine_tunes_all_of_it(tmp_path: Path, widths: str, loader: str) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    folder = exported(tmp_path / "export", widths)
    model, tokenizer = LOADERS[loader](folder), AutoTokenizer.from_pretrained(folder)
    before, rows = logits(model), [{"text": tokenizer.decode(row)} for row in WINDOWS.input_ids]
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=4, learning_rate=1e-2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        max_length=16, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    check_saved(tmp_path / "tuned", trainer.model, before)
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").decode(IDS[0]) == tokenizer.decode(IDS[0])


class SomebodysModule(LightningModule):
    """It has never heard of pruning."""

    def __init__(self, folder: str, loader: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lm = LOADERS[loader](Path(folder))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.lm(**batch).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@EVERY_WAY
@EVERY_WIDTH
def test_a_strangers_lightning_module_trains_checkpoints_and_saves_it(tmp_path: Path, widths: str, loader: str) -> None:
    module = SomebodysModule(str(exported(tmp_path / "export", widths)), loader)
    before = logits(module.lm)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", devices=1, max_steps=4, **quiet)
    trainer.fit(module, DataLoader(WINDOWS, batch_size=4))  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = SomebodysModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(logits(again.lm), logits(module.lm), rtol=0, atol=0)
    module.lm.save_pretrained(tmp_path / "tuned")
    word_tokenizer().save_pretrained(tmp_path / "tuned")
    check_saved(tmp_path / "tuned", module.lm, before)
