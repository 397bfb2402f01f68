"""A Trainer's training that is judged on held-out text, in somebody else's project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy

from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.errors import ConfigurationError, DataError
from adapruner.evaluation.perplexity import evaluate_nll
from adapruner.recovery.early_stop import EarlyStopConfig
from adapruner.recovery.lora import LoRAConfig
from tests.callbacks.conftest import ForeignModule, foreign_trainer, search_callback
from tests.callbacks.test_recovery_checkpoint import EndAt, Killed, OrderedData
from tests.tiny import random_windows, word_tokenizer

HELD_OUT = random_windows(6, 16, seed=2)
"""The search split of the foreign data."""


class Fast(ForeignModule):
    """So fast that other text soon gets worse."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=3e-2)


def recovery(every: int = 2, patience: int = 2, **options: Any) -> LoRARecoveryCallback:
    looks = EarlyStopConfig(every, patience=patience, batch_size=4)
    return LoRARecoveryCallback(LoRAConfig(r=4, alpha=8, dropout=0.1), model_attribute="language", early_stop=looks, **options)


def fit(folder: Path, callbacks: list[Any], ckpt_path: Any = None, module: Any = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_steps": 40, "max_epochs": -1, "enable_checkpointing": True}
    trainer = foreign_trainer(folder, callbacks, **{**defaults, **options})
    trainer.fit(module or Fast(), datamodule=OrderedData(), ckpt_path=ckpt_path)
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.lightning_module.language.state_dict()  # type: ignore[no-any-return, union-attr, operator]


@pytest.mark.parametrize("form", ["lora", "full"])
def test_what_stays_is_the_training_that_ends_at_the_best_look(tmp_path: Path, form: Any) -> None:
    lora = recovery(form=form)
    judged = fit(tmp_path / "judged", [lora], logger=CSVLogger(tmp_path))
    looks = lora.ending.looks
    assert looks is not None
    assert lora.ending.ended_by == "early stop"
    assert 0 < looks.best_step == judged.global_step - 4  # type: ignore[operator]
    shorter = fit(tmp_path / "shorter", [recovery(0, form=form)], max_steps=looks.best_step)
    for name, value in weights(shorter).items():
        torch.testing.assert_close(weights(judged)[name], value, rtol=1e-5, atol=1e-6, msg=name)
    model = judged.lightning_module.language
    assert evaluate_nll(model, HELD_OUT).nll == pytest.approx(dict(looks.looks)[looks.best_step], rel=1e-5)  # type: ignore[arg-type, index]
    section = lora.report_sections(judged)["recovery"]["early_stop"]
    assert section["best_step"] == looks.best_step
    assert section["looks"] == [list(look) for look in looks.looks]
    assert "held_out_nll" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_the_last_step_is_looked_at_whatever_ends_the_training(tmp_path: Path) -> None:
    for options in ({"max_steps": 3}, {"max_steps": -1, "max_epochs": 1}):  # four batches
        lora = recovery(2, patience=9)
        trainer = fit(tmp_path, [lora], **options)
        assert lora.ending.looks is not None
        assert [step for step, _ in lora.ending.looks.looks] == sorted({0, 2, trainer.global_step})


def test_a_killed_run_decides_alike_and_a_finished_one_stays(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        checkpoint = RecoveryCheckpointCallback(1)
        checkpoint.settings = {"model": "a"}
        return [search_callback(), recovery(), checkpoint]

    unbroken = callbacks()
    whole = fit(tmp_path / "whole", unbroken)
    last = whole.global_step
    with pytest.raises(Killed, match="killed"):
        fit(tmp_path / "killed", [*callbacks(), EndAt(last - 1)])
    for _ in range(2):
        again = callbacks()
        resumed = fit(tmp_path / "killed", again, tmp_path / "killed" / "checkpoints" / "last.ckpt")
        assert resumed.global_step == last
        assert again[1].ending.looks.looks == unbroken[1].ending.looks.looks
        assert again[1].ending.ended_by == "early stop"
        for name, value in weights(whole).items():
            assert torch.equal(weights(resumed)[name], value), name


def test_the_last_look_is_in_the_last_checkpoint(tmp_path: Path) -> None:
    for ckpt_path in (None, tmp_path / "checkpoints" / "last.ckpt"):
        lora = recovery(2, patience=9)
        fit(tmp_path, [lora, RecoveryCheckpointCallback(1)], ckpt_path, max_steps=3)
        assert lora.ending.looks is not None
        assert [step for step, _ in lora.ending.looks.looks] == [0, 2, 3]


def test_text_of_one_s_own_is_judged_on(tmp_path: Path) -> None:
    lora = recovery(held_out=random_windows(5, 16, seed=9))
    fit(tmp_path, [lora], max_steps=2)
    assert lora.ending.looks is not None
    assert lora.ending.looks.windows == 5
    module = Fast()
    module.tokenizer = word_tokenizer()
    lora = recovery(held_out=[" ".join(f"w{(i * j) % 90}" for i in range(300)) for j in range(1, 5)])
    fit(tmp_path, [lora], max_steps=2, module=module)
    assert lora.ending.looks is not None


def test_without_text_it_is_refused(tmp_path: Path) -> None:
    trainer = foreign_trainer(tmp_path, [recovery()])
    with pytest.raises(ConfigurationError, match=r"recovery\.early_stop: expected held-out text to judge on, got none; give held_out"):
        trainer.fit(Fast(), OrderedData().train_dataloader())


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"held_out: expected a list of texts, .*, got int; give one"):
        fit(tmp_path, [recovery(held_out=5)])


def test_a_model_that_cannot_be_judged_between_two_steps_is_refused() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.__class__ = FSDPStrategy  # which Lightning takes on a GPU alone
    with pytest.raises(ConfigurationError, match=r"recovery\.early_stop: expected a strategy under which .*, got FSDP1; choose ddp"):
        recovery().check_before_search(trainer)
    recovery(0).check_before_search(trainer)
