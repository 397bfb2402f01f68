"""A Trainer's training that ends after so much time, in somebody else's project. The clock is made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from adapruner.callbacks import lora_recovery
from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.recovery_bar import RecoveryBar
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.errors import ConfigurationError
from adapruner.recovery.lora import LoRAConfig
from adapruner.recovery.spanned_schedule import SpannedSchedule
from tests.callbacks.conftest import ForeignModule, foreign_trainer, search_callback
from tests.callbacks.test_recovery_checkpoint import EndAt, Killed, OrderedData


class Scheduled(ForeignModule):
    """Its learning rate falls to nothing over ten steps, whatever the training has."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=10)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Clock(Callback):
    """A second passes with every batch; notes the learning rate of each optimizer step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.rates = 100.0, list[float]()
        monkeypatch.setattr(lora_recovery, "time", SimpleNamespace(monotonic=lambda: self.now))

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 1.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def recovery(time_budget: Any, form: Any = "lora") -> LoRARecoveryCallback:
    lora = LoRAConfig(r=2, alpha=4, dropout=0.0)
    return LoRARecoveryCallback(lora, model_attribute="language", time_budget=time_budget, form=form)


def fit(folder: Path, callbacks: list[Any], ckpt_path: Any = None, module: Any = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_steps": -1, "max_epochs": -1, "enable_checkpointing": True}
    trainer = foreign_trainer(folder, callbacks, **{**defaults, **options})
    trainer.fit(module or Scheduled(), datamodule=OrderedData(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("form", ["lora", "full"])
def test_it_ends_after_its_time_and_the_schedule_with_it(tmp_path: Path, clock: Clock, form: Any, capsys: Any) -> None:
    lora = recovery("25s", form)
    trainer = fit(tmp_path, [lora, clock])
    assert trainer.global_step == 25
    assert isinstance(trainer.lr_scheduler_configs[0].scheduler, SpannedSchedule)
    assert clock.rates == pytest.approx([1e-3 * (1 - step / 25) for step in range(25)])
    section = lora.report_sections(trainer)["recovery"]
    assert {name: section[name] for name in ("steps", "seconds", "time_budget", "ended_by")} == {
        "steps": 25,
        "seconds": 25.0,
        "time_budget": 25.0,
        "ended_by": "time budget",
    }
    said = capsys.readouterr().out
    assert "recovery: at 1 s a step 25.0 s of training hold about 25 steps" in said
    assert "recovery: 25 steps in 25.0 s, ended by its time budget" in said


def test_steps_and_passes_stay_bounds_that_the_schedule_ends_at(tmp_path: Path, clock: Clock) -> None:
    lora = recovery("1h")
    assert fit(tmp_path / "steps", [lora, clock], max_steps=5).global_step == 5
    assert lora.ending.ended_by == "steps"
    assert clock.rates == pytest.approx([1e-3 * (1 - step / 5) for step in range(5)])
    lora = recovery("1h")
    assert fit(tmp_path / "passes", [lora], max_epochs=2).global_step == 8
    assert lora.ending.ended_by == "passes"


def test_gradients_of_several_batches_are_not_thrown_away(tmp_path: Path, clock: Clock) -> None:
    trainer = fit(tmp_path, [recovery("9s"), clock], accumulate_grad_batches=2)
    assert trainer.global_step == len(clock.rates) == 4
    assert clock.now == 108.0  # a ninth batch would leave half a step


def test_a_killed_run_counts_what_it_used(tmp_path: Path, clock: Clock) -> None:
    def callbacks() -> list[Any]:
        checkpoint = RecoveryCheckpointCallback(2)
        checkpoint.settings = {"model": "a"}
        return [search_callback(), recovery("9s"), checkpoint]

    with pytest.raises(Killed, match="killed"):
        fit(tmp_path, [*callbacks(), clock, EndAt(5)])
    assert len(clock.rates) == 5
    clock.now += 1000.0
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed = callbacks()
    assert fit(tmp_path, [*resumed, clock], last).global_step == 9
    assert resumed[1].seconds == 9.0
    assert clock.rates[5:] == pytest.approx([1e-3 * (1 - step / 9) for step in range(4, 9)])
    again = callbacks()
    assert fit(tmp_path, [*again, clock], last).global_step == 9  # nothing is left
    assert len(clock.rates) == 10
    assert (again[1].seconds, again[1].ending.ended_by) == (9.0, "time budget")
    longer = [search_callback(), recovery("12s")]
    assert fit(tmp_path, [*longer, clock], last).global_step == 12


def test_the_bar_counts_to_what_the_budget_holds(tmp_path: Path, clock: Clock) -> None:
    bar = RecoveryBar()
    fit(tmp_path, [recovery("8s"), clock, bar], enable_progress_bar=True)
    assert bar.is_timed
    assert bar.total_train_batches == 8


def test_without_one_all_is_as_before(tmp_path: Path) -> None:
    lora = recovery(None)
    trainer = fit(tmp_path, [lora], max_steps=6)
    assert type(trainer.lr_scheduler_configs[0].scheduler) is torch.optim.lr_scheduler.LinearLR
    assert (trainer.global_step, lora.ending.ended_by) == (6, "steps")


def test_what_is_recovered_alike_needs_a_number_of_steps(tmp_path: Path) -> None:
    callbacks = [search_callback(), recovery("8s"), CompressionReportCallback(compare=["l2"], compare_recovered=True)]
    with pytest.raises(
        ConfigurationError, match=r"report\.compare_recovered: expected a number of steps for all, got recovery\.time_budget"
    ):
        fit(tmp_path, callbacks)


def test_no_duration_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"recovery\.time_budget: expected a duration above 0 .*, got 'soon'; give 45m"):
        recovery("soon")
