"""The bar of the recovery, on a terminal of 80 columns."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from adapruner.callbacks import LoRARecoveryCallback, PruningSearchCallback
from adapruner.callbacks.recovery_bar import RecoveryBar
from adapruner.progress import progress_bar
from adapruner.pruning.budget import Budget
from adapruner.recovery.lora import LoRAConfig
from adapruner.search.config import SearchConfig
from adapruner.search.space import SearchSpace
from tests.test_progress import Terminal, drawn, screen_of
from tests.tiny import random_windows, tiny_llama


class Losses(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        found = super().training_step(batch, batch_idx)
        self.log("train_loss", found["loss"], prog_bar=True)
        return found


class Report(Callback):
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        rich.get_console().print("the report")


@pytest.fixture
def screen() -> Iterator[io.StringIO]:
    file = io.StringIO()
    yield file
    rich.reconfigure()


def train(screen: io.StringIO, folder: Path, ckpt_path: str | None = None, **options: Any) -> list[str]:
    """What a training on three batches printed, one line for each time that the bar was drawn."""
    bar = RecoveryBar(console_kwargs={"file": screen, "force_terminal": True, "width": 80})
    own: dict[str, Any] = {"default_root_dir": folder, "logger": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[bar, Report()], limit_val_batches=0, **{**own, **options})
    trainer.fit(Losses(), DataLoader(RandomDataset(32, 3)), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "here.ckpt")
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()))


def test_one_bar_over_all_steps_in_one_line(screen: io.StringIO, tmp_path: Path) -> None:
    said = train(screen, tmp_path, max_steps=7)
    steps = [int(found[1]) for line in said if (found := re.match(r"recovery +[━╸╺]+ +(\d+)/7 .*train_loss: +\d", line))]
    assert steps[-1] == 7
    assert steps == sorted(steps)  # it does not begin anew with each pass
    *said, last = [line for line in said if line.strip()]
    assert {line.split()[0] for line in said} == {"recovery"}  # nothing went into a second line
    assert last == "the report"  # and the bar is not drawn again behind it


def test_a_resumed_training_goes_on_where_it_was(screen: io.StringIO, tmp_path: Path) -> None:
    train(screen, tmp_path, max_steps=4)
    screen.truncate(0)
    said = train(screen, tmp_path, str(tmp_path / "here.ckpt"), max_steps=9)
    steps = {int(found[1]) for line in said if (found := re.match(r"\0*recovery +[━╸╺]+ +(\d+)/9 ", line))}
    assert 9 in steps
    assert steps <= {0, *range(4, 10)}  # 0: nothing is known yet


def test_epochs_that_somebody_chose_are_counted_as_passes(screen: io.StringIO, tmp_path: Path) -> None:
    said = "\n".join(train(screen, tmp_path, max_epochs=2))
    assert re.search(r"recovery, pass 2 over its text +[━╸╺]+ +3/3 ", said)


class Theirs(LightningModule):
    """A module that has never heard of pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = tiny_llama(intermediate_size=480)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.lm(**batch, use_cache=False).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def ours(name: str) -> Callback:
    if name == "recovery":
        return LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0), model_attribute="lm")
    search = SearchConfig(n_trials=2, chunks=2, random_sets=0, rerank=None, space=SearchSpace(metrics=["l2"]))
    return PruningSearchCallback(
        Budget(0.3), search, model_attribute="lm", calibration=random_windows(8, 16, seed=1, sources=("books", "code"))
    )


def fit_theirs(folder: Path, callbacks: list[Any], **options: Any) -> ProgressBar | None:
    """The bar that a Trainer of somebody's own has after a training."""
    own: dict[str, Any] = {"default_root_dir": folder, "logger": False, "accelerator": "cpu", "enable_checkpointing": False}
    trainer = Trainer(callbacks=callbacks, **{**own, **options})
    rows: Any = random_windows(8, 16, seed=1)
    trainer.fit(Theirs(), DataLoader(rows, batch_size=4))
    return trainer.progress_bar_callback


@pytest.mark.parametrize("name", ["search", "recovery"])
def test_a_trainer_of_somebody_s_own_counts_steps_by_its_own_bar(name: str, screen: io.StringIO, tmp_path: Path) -> None:
    given = RichProgressBar(console_kwargs={"file": screen, "force_terminal": True, "width": 80})
    assert fit_theirs(tmp_path, [ours(name), given], max_steps=3) is given
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"recovery +[━╸╺]+ +3/3 ", said), said
    assert "Epoch" not in said


def test_the_bar_that_a_trainer_makes_by_itself_is_ours(tmp_path: Path) -> None:
    assert type(fit_theirs(tmp_path, [ours("recovery")], max_steps=3)) is RecoveryBar


class Own(RichProgressBar):
    """Somebody wrote it."""


@pytest.mark.parametrize("bar", [Own, TQDMProgressBar])
def test_a_bar_that_somebody_chose_is_left_alone(bar: type[ProgressBar], tmp_path: Path) -> None:
    assert type(fit_theirs(tmp_path, [ours("recovery"), bar()], max_steps=3)) is bar


def test_a_bar_that_counts_epochs_is_left_alone(tmp_path: Path) -> None:
    assert type(fit_theirs(tmp_path, [ours("recovery")], max_epochs=2)) is RichProgressBar


def test_a_bar_that_is_off_stays_off(tmp_path: Path) -> None:
    assert fit_theirs(tmp_path, [ours("recovery")], max_steps=3, enable_progress_bar=False) is None


def test_nothing_is_recommended_and_all_else_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit_theirs(tmp_path, [ours("recovery")], max_steps=3, enable_checkpointing=True)
    said = "\n".join(caplog.messages)
    assert "GPU available" in said
    assert "max_steps=3" in said
    assert "Tip" not in said


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The terminal of a process whose libraries were imported on it."""
    found = screen_of(monkeypatch)
    monkeypatch.setattr(sys, "stderr", found)
    log = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler(found)])
    monkeypatch.setattr(log, "level", logging.INFO)
    return found


@pytest.mark.parametrize("length", [{"max_steps": 3}, {"max_epochs": 1}])
@pytest.mark.parametrize("name", ["search", "recovery"])
def test_why_a_training_ended_has_a_line_of_its_own(
    name: str, length: Any, screen: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_of(monkeypatch)
    fit_theirs(tmp_path, [ours(name)], **length)
    ((why, steps),) = length.items()
    before, _, after = terminal.getvalue().partition(f"`Trainer.fit` stopped: `{why}={steps}` reached.")
    assert before.endswith("\r\x1b[2K")  # the bar was wiped off: else it would stand there twice
    assert after.startswith("\n")


@pytest.mark.parametrize("name", ["search", "recovery"])
def test_a_trainer_without_a_bar_has_none_of_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    fit_theirs(tmp_path, [ours(name)], max_steps=3, enable_progress_bar=False, enable_model_summary=False)
    assert "━" not in terminal.getvalue()
    stage = {"search": "search: 2 of 2", "recovery": "recovery: 3 of 3"}[name]
    assert stage in terminal.getvalue()
    with progress_bar("afterwards", 1):
        pass
    assert "━" in drawn(terminal)[-1]


@pytest.mark.parametrize("name", ["search", "recovery"])
def test_what_lightning_deprecates_in_itself_is_not_said(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        fit_theirs(tmp_path, [ours(name)], max_steps=1)
        assert warnings.filters == before
        assert [str(one.message) for one in said if "LeafSpec" in str(one.message)] == []
        Trainer(logger=False, max_steps=1, accelerator="cpu", enable_checkpointing=False, limit_val_batches=0).fit(BoringModel())
        assert [one.category for one in said if "LeafSpec" in str(one.message)]  # what is of no use any more may go
