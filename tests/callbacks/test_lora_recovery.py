from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from adapruner.callbacks.compression_report import CompressionReportCallback
from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.callbacks.pruned_export import PrunedExportCallback
from adapruner.callbacks.recovery_checkpoint import RecoveryCheckpointCallback
from adapruner.errors import ConfigurationError, ModelError
from adapruner.export.loading import load
from adapruner.recovery.briefly import recover_briefly
from adapruner.recovery.lora import LoRAConfig
from tests.callbacks.conftest import ForeignData, ForeignModule, Run, foreign_trainer, search_callback
from tests.callbacks.test_recovery_checkpoint import OrderedData
from tests.tiny import random_windows, word_tokenizer


def lora(seed: int = 0) -> LoRARecoveryCallback:
    return LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0), seed=seed, model_attribute="language")


def test_a_short_recovery_is_what_the_trainer_does(tmp_path: Path) -> None:
    trained = Run(tmp_path, [lora(seed=5)], max_steps=6).module.language
    briefly = recover_briefly(
        ForeignModule().language,
        ForeignData().train_dataloader(),
        lora().lora,
        steps=6,  # one and a half times through the data
        build_optimizer=lambda parameters: (torch.optim.AdamW(parameters, lr=1e-3), None),
        seed=5,
    )
    torch.testing.assert_close(dict(briefly.state_dict()), dict(trained.state_dict()))
    assert not torch.equal(trained.lm_head.weight, trained.model.embed_tokens.weight)


def full() -> LoRARecoveryCallback:
    return LoRARecoveryCallback(LoRAConfig(dropout=0.0), model_attribute="language", form="full")


def test_a_full_recovery_is_what_a_short_one_does(tmp_path: Path) -> None:
    trained, before = Run(tmp_path, [full()], max_steps=6).module.language, ForeignModule().language
    briefly = recover_briefly(
        ForeignModule().language,
        ForeignData().train_dataloader(),
        full().lora,
        form="full",
        steps=6,
        build_optimizer=lambda parameters: (torch.optim.AdamW(parameters, lr=1e-3), None),
    )
    torch.testing.assert_close(dict(briefly.state_dict()), dict(trained.state_dict()))
    assert all(p.requires_grad for p in trained.parameters())
    for name, value in before.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value) == (".layers." not in name), name


@pytest.mark.slow  # three runs
def test_a_full_recovery_after_a_search_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Its checkpoint holds whole weights, no adapters; the plan of it prunes a fresh module."""

    def fit(folder: str, steps: int, *more: Any, ckpt_path: Any = None) -> Any:
        module = ForeignModule()
        checkpoint = RecoveryCheckpointCallback(1)
        checkpoint.settings = {"model": "a"}
        trainer = foreign_trainer(
            tmp_path / folder, [search_callback(), full(), checkpoint, *more], max_steps=steps, enable_checkpointing=True
        )
        trainer.fit(module, datamodule=OrderedData(), ckpt_path=ckpt_path)
        return module.language

    unbroken = fit("whole", 4, PrunedExportCallback(verify=False))
    fit("first", 2)
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert not any("lora" in name for name in torch.load(checkpoint, weights_only=True)["state_dict"])
    resumed, loaded = fit("first", 4, ckpt_path=checkpoint), load(tmp_path / "whole" / "model")
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
        assert torch.equal(loaded.state_dict()[name], value), name


def test_before_the_search_it_is_refused(tmp_path: Path) -> None:
    trainer = foreign_trainer(tmp_path, [lora(), search_callback()])
    with pytest.raises(ConfigurationError, match="expected LoRARecoveryCallback after PruningSearchCallback, got it before"):
        trainer.fit(ForeignModule(), datamodule=ForeignData())


def test_the_curve_survives_a_resume(tmp_path: Path) -> None:
    callback = lora()
    first = Run(tmp_path, [callback], max_steps=2, enable_checkpointing=True)
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    again = lora()
    second = Run(tmp_path, [again], max_steps=4, ckpt_path=checkpoint)
    assert first.trainer.global_step == 2
    assert second.trainer.global_step == 4
    assert [step for step, _ in again.history] == [1, 2, 3, 4]
    assert again.history[:2] == callback.history
    assert (callback.tokens, again.tokens) == (2 * 4 * 15, 4 * 4 * 15)  # batches of 4 windows of 16 tokens, 15 predictions each


class SpoiledText(ForeignData):
    """Row 2 of the second batch has a token that no other row has."""

    def train_dataloader(self) -> Any:
        windows = random_windows(16, 16, seed=4)
        windows.input_ids[6, 3] = windows.labels[6, 3] = 90
        return DataLoader(windows, batch_size=4)  # type: ignore[arg-type]


def test_a_loss_that_is_no_number_names_sample_and_layer(tmp_path: Path) -> None:
    module = ForeignModule()
    module.tokenizer = word_tokenizer()  # type: ignore[assignment]
    with torch.no_grad():
        module.language.model.embed_tokens.weight[90] = float("nan")
    where = (
        r"on sample 2 of batch 1 \('w\d+ w\d+ w\d+ w86 (w\d+ ){8}\.\.\.'\), not finite from model\.embed_tokens on; lower the learning rate"
    )
    with pytest.raises(ModelError, match=rf"recovery: expected a finite loss, got nan after 1 optimizer steps, {where}"):
        foreign_trainer(tmp_path, [lora()]).fit(module, datamodule=SpoiledText())


def test_a_gradient_that_is_no_number_names_the_sample(tmp_path: Path) -> None:
    """The loss is a number, what comes back through one layer is not."""
    module = ForeignModule()
    spoil = _NoNumberBehind(module.language, token=90)
    with pytest.raises(
        ModelError, match=r"expected finite gradients, got inf or nan in \S+ after 1 optimizer steps, from sample 2 of batch 1; lower"
    ):
        foreign_trainer(tmp_path, [lora()]).fit(module, datamodule=SpoiledText())
    assert spoil.seen


class _NoNumberBehind:
    """Spoils the gradient of the rows that have a token, on its way into the last layer."""

    def __init__(self, model: Any, token: int) -> None:
        self.token, self.seen = token, False
        model.model.embed_tokens.register_forward_hook(self._remember)
        model.model.layers[2].register_forward_hook(self._spoil)

    def _remember(self, _: Any, inputs: Any, __: Any) -> None:
        self.rows = (inputs[0] == self.token).any(1)

    def _spoil(self, _: Any, __: Any, output: Any) -> None:
        hidden, rows = (output[0] if isinstance(output, tuple) else output), self.rows
        if hidden.requires_grad and bool(rows.any()):
            self.seen = True
            hidden.register_hook(lambda gradient: gradient.masked_fill(rows[:, None, None], float("inf")))


def test_report_and_export_need_a_search_beside_them(tmp_path: Path) -> None:
    for callback in (CompressionReportCallback(), PrunedExportCallback()):
        name = type(callback).__name__
        with pytest.raises(ConfigurationError, match=f"expected a PruningSearchCallback beside {name}, got none"):
            foreign_trainer(tmp_path, [callback]).fit(ForeignModule(), datamodule=ForeignData())
    with pytest.raises(ConfigurationError, match=r"export.dtype: expected float32, bfloat16 or float16, got 'int8'"):
        PrunedExportCallback(dtype="int8")
    (tmp_path / "file").touch()
    trainer = foreign_trainer(tmp_path, [search_callback(), PrunedExportCallback(folder=str(tmp_path / "file"))])
    with pytest.raises(ConfigurationError, match="folder: expected a folder, got the file"):
        trainer.fit(ForeignModule(), datamodule=ForeignData())
    assert not (tmp_path / "study.journal").exists()  # before the search, not after it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": ["l3"]}, "report.compare: expected a known metric, got 'l3'"),
        ({"batch_size": 0}, "report.batch_size: expected 1 or more, got 0"),
        ({"latency_repeats": 0}, "report.latency_repeats: expected 1 or more, got 0"),
    ],
)
def test_a_report_that_cannot_be_made_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CompressionReportCallback(**options)  # type: ignore[arg-type]
