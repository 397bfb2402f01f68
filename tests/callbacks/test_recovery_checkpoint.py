"""Recovery that was ended goes on: by the state on disk, under the same settings only."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.pruning_search import PruningSearchCallback
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.cli import fit as fit_command
from adapruner.data.resumable import ResumableLoader, SharedOrder
from adapruner.errors import ConfigurationError
from adapruner.recovery.last_checkpoint import FILE, find_checkpoint, settings_of
from adapruner.recovery.lora import LoRAConfig
from adapruner.report import measured_before
from tests.callbacks.conftest import ForeignData, ForeignModule, Run, foreign_trainer, search_callback
from tests.tiny import random_windows


class Killed(BaseException):
    """As a signal would: nothing catches it."""


class EndAt(Callback):
    """Ends the run in the middle of a step: as a kill does, or by the signal of a scheduler."""

    def __init__(self, step: int, by_signal: bool = False) -> None:
        self.step, self.by_signal = step, by_signal

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if not self.by_signal:
                raise Killed("killed")
            os.kill(os.getpid(), signal.SIGTERM)


def callbacks(every: int = 2, settings: dict[str, str] | None = None) -> list[Any]:
    checkpoint = RecoveryCheckpointCallback(every)
    checkpoint.settings = {"model": "a"} if settings is None else settings
    lora = LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.2), model_attribute="language")
    return [search_callback(), lora, checkpoint]


class OrderedData(ForeignData):
    """As the command line's: a shuffled order that goes on, and a fingerprint."""

    fingerprint = "0123"

    def train_dataloader(self) -> Any:
        windows: Any = random_windows(16, 16, seed=4)
        return ResumableLoader(windows, 4, sampler=SharedOrder(windows, 4, seed=0), generator=torch.Generator())


def trained(folder: Path, *more: Any, seed: int = 5, ckpt_path: Any = None) -> tuple[Any, list[Any]]:
    """Module and callbacks of a run that came to its end."""
    given, module = [*callbacks(), *more], ForeignModule()
    torch.manual_seed(seed)
    foreign_trainer(folder, given, enable_checkpointing=True).fit(module, datamodule=OrderedData(), ckpt_path=ckpt_path)
    return module, given


def same_weights(one: Any, other: Any) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("step", [2, 3])
def test_killed_in_recovery_and_resumed_it_ends_with_the_same_weights(tmp_path: Path, step: int) -> None:
    """Dropout included: the numbers it draws go on where they were."""
    left_alone, first = trained(tmp_path / "whole")
    with pytest.raises(Killed, match=r"^killed$"):
        trained(tmp_path / "run", EndAt(step))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    resumed, again = trained(tmp_path / "run", seed=99, ckpt_path=tmp_path / "run" / FILE)
    same_weights(left_alone, resumed)
    assert again[1].history == first[1].history
    assert [step for step, _ in again[1].history] == [1, 2, 3, 4]


def test_a_run_that_had_come_to_its_end_is_not_trained_again(tmp_path: Path) -> None:
    module, first = trained(tmp_path)
    other, again = trained(tmp_path, ckpt_path=tmp_path / FILE)
    same_weights(module, other)
    assert again[1].history == first[1].history
    assert 0 < again[1].seconds <= first[1].seconds  # as the checkpoint has them, which was written before the end


def test_adapters_apart_are_exported_by_a_run_that_had_come_to_its_end(tmp_path: Path) -> None:
    """Lightning skips the end of training where nothing is left to train."""
    trained(tmp_path)
    trained(tmp_path, PrunedExportCallback(adapters="folder", verify=False), ckpt_path=tmp_path / FILE)
    assert (tmp_path / "model" / "adapter" / "adapter_config.json").exists()


def test_a_schedulers_signal_keeps_the_step_it_came_in(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException, match=r"^$"):
        trained(tmp_path, EndAt(2, by_signal=True))
    assert torch.load(tmp_path / FILE, weights_only=True)["global_step"] == 3


def test_a_schedulers_signal_in_the_last_step_is_not_overlooked(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException, match=r"^$"):
        trained(tmp_path, EndAt(3, by_signal=True))
    assert torch.load(tmp_path / FILE, weights_only=True)["global_step"] == 4


def test_a_run_that_a_scheduler_ended_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def end(command: str, words: list[str]) -> None:
        raise SIGTERMException

    monkeypatch.setattr(fit_command, "PruningCLI", end)
    with pytest.raises(SystemExit, match=r"^143$"):
        fit_command.run_trainer("fit", [])
    assert "the same command goes on from there" in capsys.readouterr().out


def test_a_checkpoint_of_other_settings_is_left_alone_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_checkpoint(tmp_path, {"model": "a"}) is None
    with pytest.raises(Killed, match=r"^killed$"):
        trained(tmp_path, EndAt(3))
    assert find_checkpoint(tmp_path, {"model": "a"}) == tmp_path / FILE
    assert find_checkpoint(tmp_path, {"model": "b"}) is None
    assert "was written under other settings (model)" in capsys.readouterr().out
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:1000])
    assert find_checkpoint(tmp_path, {"model": "a"}) is None
    assert "recovery starts anew" in capsys.readouterr().out


def test_settings_are_what_decides_the_weights() -> None:
    config: dict[str, Any] = {"model": {"name_or_path": "x"}, "trainer": {"max_steps": 3, "logger": None, "devices": 1}, "report": 1}
    assert settings_of(config) == settings_of({**config, "report": 2, "trainer": {"max_steps": 3, "devices": 2}})
    refits = [{**config, "pruning": {"reconstruction": {"ridge": r, "shared_gib": gib}}} for r, gib in ((1, 0.0), (1, 2.0), (2, 0.0))]
    assert settings_of(refits[0]) == settings_of(refits[1]) == settings_of({**config, "pruning": {"reconstruction": {"ridge": 1}}})
    assert settings_of(refits[0]) != settings_of(refits[2])
    timed = [settings_of({**config, "recovery": {"time_budget": time}}) for time in ("45m", "90m", None)]
    assert timed[0] == timed[1] != timed[2]
    other = settings_of({**config, "trainer": {"max_steps": 4}})
    assert {k for k, v in settings_of(config).items() if other[k] != v} == {"trainer"}


def test_settings_are_the_same_in_every_process() -> None:
    """A function of the configuration, as the default optimizer is, lies elsewhere in memory each time."""

    def made() -> Any:
        def optimizer() -> None: ...

        return optimizer

    first, second = made(), made()
    assert str(first) != str(second)
    assert settings_of({"model": {"optimizer": first}}) == settings_of({"model": {"optimizer": second}})
    assert settings_of({"model": {"optimizer": first}}) != settings_of({"model": {"optimizer": made}})


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = torch.save, iter(range(9))

    def full(record: Any, file: Any) -> None:
        if next(calls) == 1:
            Path(file).write_bytes(b"half")
            raise RuntimeError(
                "[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/0: file write failed\n"
            )
        save(record, file)

    monkeypatch.setattr(torch, "save", full)
    message = r"checkpoint: expected to write .*last.ckpt, got .*failed writing file.*; make room, the same command goes on"
    with pytest.raises(ConfigurationError, match=message) as caught:
        Run(tmp_path, callbacks(every=1), enable_checkpointing=True)
    assert "\n" not in str(caught.value)
    assert torch.load(tmp_path / FILE, weights_only=True)["global_step"] == 1
    assert [p.name for p in (tmp_path / FILE).parent.iterdir()] == ["last.ckpt"]
    with pytest.raises(ConfigurationError, match=r"checkpoint.every_n_steps: expected 1 or more, got 0; give 50"):
        RecoveryCheckpointCallback(0)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(ended_at: int | None, ckpt_path: Any = None) -> CompressionReportCallback:
        report = CompressionReportCallback(compare=["l2"], latency_seq_len=16, latency_repeats=1)
        given = [*callbacks(), report, *([] if ended_at is None else [EndAt(ended_at)])]
        next(c for c in given if isinstance(c, PruningSearchCallback)).weights_follow = ckpt_path is not None
        foreign_trainer(tmp_path, given, enable_checkpointing=True).fit(ForeignModule(), datamodule=OrderedData(), ckpt_path=ckpt_path)
        return report

    with pytest.raises(Killed, match=r"^killed$"):
        fit(3)

    def no_more(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was known")

    monkeypatch.setattr(measured_before, "measure_stages", no_more)
    monkeypatch.setattr("adapruner.stages.refit_if_better", no_more)
    again = fit(None, tmp_path / FILE)
    rows = {(r["method"], r["stage"]) for r in again.recorder.perplexity}
    stages = {("l2", "pruned"), ("l2", "reconstructed"), ("best fixed", "pruned"), ("best fixed", "reconstructed")}
    assert rows == {("dense", "dense"), ("adapruner", "pruned"), ("adapruner", "reconstructed"), ("adapruner", "recovered"), *stages}
