"""Launchers and strategies that cannot work after a surgery, refused in one line before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn

from adapruner.callbacks.validation import check_gathers, check_launcher
from adapruner.cli import main
from adapruner.errors import ConfigurationError
from adapruner.module import PrunableCausalLM
from tests.complaints import complaint


def trainer_with(strategy: Any) -> Any:
    return SimpleNamespace(strategy=strategy)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_launchers_that_copy_the_process(method: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer.strategy: expected a launcher that .*, got one that uses '{method}'; choose"):
        check_launcher(trainer_with(DDPStrategy(start_method=method)))  # type: ignore[arg-type]


def test_the_command_line_refuses_them_before_it_starts_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.strategy", "ddp_spawn", "--trainer.devices", "2", "--trainer.default_root_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["fit", "--config", "quickstart.yaml", "--trainer.logger", "false", *options])
    said = capfd.readouterr().err
    assert "trainer.strategy: expected a launcher that starts whole processes, got one that uses 'spawn'" in said
    assert not (tmp_path / "run").exists()


def test_a_strategy_that_does_not_give_the_model_back() -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected one that gives the model back whole, got \w+ at ZeRO stage 3; choose ddp, fsdp"
    ):
        check_launcher(trainer_with(SimpleNamespace(launcher=None, zero_stage_3=True)))


def test_a_module_that_would_stay_in_pieces_under_fsdp1() -> None:
    trainer = SimpleNamespace(strategy=FSDPStrategy(), lightning_module=nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=r"expected a module with make_whole under fsdp, got Linear without one; choose ddp"):
        check_gathers(trainer)  # type: ignore[arg-type]
    trainer.lightning_module = PrunableCausalLM("x")
    check_gathers(trainer)  # type: ignore[arg-type]
    check_gathers(SimpleNamespace(strategy=DDPStrategy(), lightning_module=nn.Linear(2, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["auto", 2])
def test_tensor_parallelism(size: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"trainer.strategy.tensor_parallel_size: expected 1, got {size}; set it to 1"):
        check_launcher(trainer_with(ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=size)))


def test_what_works_passes() -> None:
    for strategy in (
        DDPStrategy(),
        SingleDeviceStrategy(),
        FSDPStrategy(),
        ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    ):
        assert complaint(check_launcher, trainer_with(strategy)) is None
