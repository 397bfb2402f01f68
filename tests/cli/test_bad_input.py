"""Bad input: one line, exit code 2, nothing written, before anything heavy."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
from adapruner.cli import main
from adapruner.errors import ModelError
from tests.bad_inputs import ROWS, BadInput, command_of
from tests.spoilt import make_workspace
from tests.write_errors_page import PAGE

ROOT = Path(__file__).parents[2]
ALL = [row for rows in ROWS.values() for row in rows]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_workspace(folder)
    return folder


@pytest.fixture
def workspace(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good inputs, to be spoilt, as the working directory."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder -> what is in it."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in sorted(folder.rglob("*"))}


def refusal(row: BadInput, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The row's message, once all that holds for every row was checked."""
    if row.spoil is not None:
        row.spoil(folder)
    before = contents(folder)
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as shown, pytest.raises(SystemExit, match=r"^2$"):
        main(command_of(row))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, "\n".join(lines)
    hidden = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as Python hides them by default
    assert [str(w.message) for w in shown if not issubclass(w.category, hidden)] == []
    assert contents(folder) == before
    assert lines[0].startswith("adapruner: error: ")
    return lines[0].removeprefix("adapruner: error: ")


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.name.replace(" ", "_"))
def test_bad_input_is_one_line_and_writes_nothing(row: BadInput, workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    message = refusal(row, workspace, capfd)
    assert re.search(row.message, message), message
    assert "; " in message, "no remedy"
    assert time.process_time() - started < 10  # seconds of this process alone, however busy the machine is; half a second is usual


def test_every_row_is_on_the_page() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    told = {cells[1]: cells[2] for cells in (re.split(r" ?(?<!\\)\| ?", line) for line in lines) if len(cells) == 4}
    for row in ALL:
        message = told.get(row.name, "").strip("` ").replace("\\|", "|")
        assert re.search(row.message, message), f"python -m tests.write_errors_page: {row.name}"
    assert len(told.keys() - {"", "---", "input"}) in (len(ALL), len(ALL) + 1)


def test_there_are_enough_rows_and_none_twice() -> None:
    assert len(ALL) >= 60
    assert len({row.name for row in ALL}) == len({(row.arguments, row.command, row.spoil) for row in ALL}) == len(ALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["an unknown option", "a weight that is not a number", "calibration text in the evaluation set"])
def test_the_same_in_a_process_of_its_own(name: str, workspace: Path) -> None:
    """A process that loads everything, hence slow: exit code and the one line are those a shell sees."""
    row = next(row for row in ALL if row.name == name)
    if row.spoil is not None:
        row.spoil(workspace)
    before = contents(workspace)
    command = [sys.executable, str(ROOT / "train.py"), *command_of(row)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, shlex.join(command)
    assert re.fullmatch(f"adapruner: error: .*{row.message}.*\n", done.stderr), done.stderr
    assert contents(workspace) == before


def test_the_inputs_that_rows_spoil_are_good(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "base.yaml", "--pruning.recipe={coefficients: {l2: 1.0}}", "--pruning.reconstruction=null"])
    assert (workspace / "run" / "model" / "config.json").exists()
    assert "error" not in capfd.readouterr().err


def test_a_gradient_that_is_no_number_is_named() -> None:
    trainer, module = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.weight.grad, module.bias.grad = torch.ones(3, 2), torch.tensor([0.0, float("inf"), 1.0])
    with pytest.raises(ModelError, match=r"recovery: expected finite gradients, got inf or nan in bias after 0 optimizer steps"):
        LoRARecoveryCallback().on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
    module.bias.grad = torch.full((3,), 3e38)  # the norm overflows, no gradient does
    LoRARecoveryCallback().on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]


_LATE = ["--pruning.recipe={coefficients: {l2: 1.0}}", "--pruning.reconstruction=null", "--trainer.max_steps=4", "--trainer.logger=false"]


def test_a_recovery_that_leaves_the_numbers_ends_in_one_line(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody can know before: it is found at the first step that it happens in."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["fit", "--config", "base.yaml", *_LATE, "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e30"])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("adapruner: error: ")]
    assert len(lines) == 1
    blame = r"(, (on|from) sample \d of batch 1 \(.*\).*)?"
    assert re.search(rf"recovery: expected (a finite loss|finite gradients), got .* after 1 optimizer steps{blame}; lower the", lines[0]), (
        lines[0]
    )
    assert not (workspace / "run" / "model").exists()
