"""Recovery that distils, under a Trainer: from the model before it is pruned, in anybody's module that asks for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.errors import ConfigurationError, DataError
from adapruner.recovery import teacher as teacher_module
from adapruner.recovery.distillation import Distillation, DistillationConfig, TopTokens, training_loss
from adapruner.recovery.lora import LoRAConfig
from tests.callbacks.conftest import ForeignData, ForeignModule, foreign_trainer, search_callback
from tests.callbacks.test_recovery_checkpoint import Killed, OrderedData, same_weights
from tests.tiny import random_windows, save_tiny

CONFIG = DistillationConfig(0.5, temperature=2.0, top_k=12)


class AskingModule(ForeignModule):
    """The two lines that a module of one's own needs."""

    def __init__(self) -> None:
        super().__init__()
        self.distillation: Distillation | None = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return training_loss(self.language, self.distillation, batch)


def lora(config: DistillationConfig = CONFIG) -> LoRARecoveryCallback:
    return LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.1), model_attribute="language", distillation=config)


def fit(folder: Path, *more: Any, module: Any = None, data: Any = None, **options: Any) -> Any:
    module = module or AskingModule()
    torch.manual_seed(5)
    trainer = foreign_trainer(folder, [search_callback(), lora(), *more], **options)
    trainer.fit(module, datamodule=data or ForeignData())
    return module


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, torch.Tensor], float, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((batch, float(outputs["loss"]), copy.deepcopy(pl_module.language)))


def test_the_teacher_is_the_model_before_the_pruning(tmp_path: Path) -> None:
    """The first step's loss, whose adapters change nothing yet, against whole logits of the dense and the pruned model."""
    dense, losses = ForeignModule().language.eval(), Losses()
    pruned: list[Any] = []

    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pruned.append(copy.deepcopy(pl_module.language.get_base_model()).eval())

    module = fit(tmp_path, losses, Keep())
    assert module.distillation is None
    batch, loss, _ = losses.seen[0]

    class Whole:
        identity = "whole"

        def of(self, batch: dict[str, torch.Tensor]) -> TopTokens:
            with torch.no_grad():
                return TopTokens.of_logits(dense(batch["input_ids"]).logits[:, :-1].flatten(0, 1), 12, 2.0)

    assert loss == pytest.approx(float(training_loss(pruned[0], Distillation(Whole(), CONFIG), batch).detach()), rel=1e-4)
    assert loss != pytest.approx(float(training_loss(pruned[0], None, batch).detach()), rel=1e-2)
    assert [path.name for path in (tmp_path / "teacher").iterdir()] == ["00000.safetensors"]


def test_killed_in_recovery_it_goes_on_with_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checkpoint() -> RecoveryCheckpointCallback:
        made = RecoveryCheckpointCallback(1)
        made.settings = {"model": "a"}
        return made

    class EndAt(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                raise Killed("killed")

    unbroken = fit(tmp_path / "whole", checkpoint(), data=OrderedData(), enable_checkpointing=True)
    with pytest.raises(Killed, match="killed"):
        fit(tmp_path / "killed", checkpoint(), EndAt(), data=OrderedData(), enable_checkpointing=True)
    monkeypatch.setattr(teacher_module, "write_tensors", lambda *_: pytest.fail("the teacher writes again"))
    module = AskingModule()
    trainer = foreign_trainer(tmp_path / "killed", [search_callback(), lora(), checkpoint()], enable_checkpointing=True)
    trainer.fit(module, datamodule=OrderedData(), ckpt_path=tmp_path / "killed" / "checkpoints" / "last.ckpt")
    same_weights(unbroken, module)


def test_a_module_that_does_not_ask_is_refused_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"recovery\.distillation: expected a module with the attribute distillation, got ForeignModule without one; set it to None",
    ):
        fit(tmp_path, module=ForeignModule())
    assert not (tmp_path / "statistics.safetensors").exists()


def test_more_tokens_than_there_are_are_refused_before_the_search(tmp_path: Path) -> None:
    trainer = foreign_trainer(tmp_path, [search_callback(), lora(DistillationConfig(0.5, top_k=97))])
    with pytest.raises(ConfigurationError, match=r"recovery\.distillation\.top_k: expected at most 96, the vocabulary, got 97; give 32"):
        trainer.fit(AskingModule(), datamodule=ForeignData())
    assert not (tmp_path / "statistics.safetensors").exists()


def test_windows_of_several_lengths_are_refused(tmp_path: Path) -> None:
    class Ragged(ForeignData):
        def train_dataloader(self) -> Any:
            return [random_windows(2, length, seed=4)[:] for length in (16, 12)]  # type: ignore[index]

    with pytest.raises(DataError, match=r"recovery\.distillation: expected training windows of one length, got \[12, 16\]; pad them alike"):
        fit(tmp_path, data=Ragged())


def test_without_a_search_the_teacher_has_a_name(tmp_path: Path) -> None:
    trainer = foreign_trainer(tmp_path, [lora()])
    with pytest.raises(ConfigurationError, match=r"recovery\.distillation\.teacher: expected a teacher's name where no search stands"):
        trainer.fit(AskingModule(), datamodule=ForeignData())
    save_tiny(tmp_path / "dense", intermediate_size=480)
    module, losses = AskingModule(), Losses()
    own = DistillationConfig(1.0, top_k=12, teacher=str(tmp_path / "dense"))  # the very model that is trained
    foreign_trainer(tmp_path, [lora(own), losses], max_steps=1).fit(module, datamodule=ForeignData())
    assert abs(losses.seen[0][1]) < 1e-5
