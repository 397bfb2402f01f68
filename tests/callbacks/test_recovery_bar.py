"""The bar of the recovery, on a terminal of 80 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
from lightning import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from adapruner.callbacks.recovery_bar import RecoveryBar


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
    steps = [int(found[1]) for line in said if (found := re.match(r"recovery +[━╸╺]+ (\d+)/7 .*train_loss: +\d", line))]
    assert steps[-1] == 7
    assert steps == sorted(steps)  # it does not begin anew with each pass
    *said, last = [line for line in said if line.strip()]
    assert {line.split()[0] for line in said} == {"recovery"}  # nothing went into a second line
    assert last == "the report"  # and the bar is not drawn again behind it


def test_a_resumed_training_goes_on_where_it_was(screen: io.StringIO, tmp_path: Path) -> None:
    train(screen, tmp_path, max_steps=4)
    screen.truncate(0)
    said = train(screen, tmp_path, str(tmp_path / "here.ckpt"), max_steps=9)
    steps = {int(found[1]) for line in said if (found := re.match(r"\0*recovery +[━╸╺]+ (\d+)/9 ", line))}
    assert 9 in steps
    assert steps <= {0, *range(4, 10)}  # 0: nothing is known yet


def test_epochs_that_somebody_chose_are_counted_as_passes(screen: io.StringIO, tmp_path: Path) -> None:
    said = "\n".join(train(screen, tmp_path, max_epochs=2))
    assert re.search(r"recovery, pass 2 over its text +[━╸╺]+ 3/3 ", said)
