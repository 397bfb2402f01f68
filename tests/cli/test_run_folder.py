"""A run folder: what a refused ``fit`` leaves alone, what stands in its way, and what it makes of a damaged or full one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.cli import main
from adapruner.files.folder_lock import FolderLock
from adapruner.pruning.plan import read_plan
from tests.files.test_folder_lock import put_in_place
from tests.spoilt import make_workspace

REFUSED = r"adapruner: error: .+: expected .+, got .+; .+\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run at its end in ``run``: two steps, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("finished")
    make_workspace(folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        main(["fit", "--config", "base.yaml", "--trainer.max_steps=2", "--checkpoint.every_n_steps=1"])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(*arguments: str) -> None:
    main(["fit", "--config", "base.yaml", "--trainer.max_steps=2", "--checkpoint.every_n_steps=1", *arguments])


def refuse(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line; the run folder is as it was."""
    before, capfd_before = snapshot(Path()), capfd.readouterr()
    del capfd_before
    with pytest.raises(SystemExit, match=r"^2$"):
        fit(*arguments)
    said = capfd.readouterr().err
    assert re.fullmatch(REFUSED, said), said
    assert snapshot(Path()) == before
    return said


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything that a look at a folder shows: kinds, contents, times of change."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
        content = path.read_bytes() if kind == "file" else os.readlink(path) if kind == "link" else ""
        found[str(path)] = (kind, content, path.lstat().st_mtime_ns if kind == "file" else 0)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("--pruning.search.seed=7",),
        ("--pruning.budget.pruned_fraction=0.99",),
        ("--pruning.recipe={coefficients: {l2: 1.0}}",),
        ("--ckpt_path=gone.ckpt",),
        ("--recovery.lora.target_modules=[v_porj]",),
        ("--export.folder=run",),
        ("--export.folder=.",),
        ("--data.calibration.sources=[{name: a, path: gone.txt}]",),
        ("--trainer.default_root_dir=run/model",),
    ],
    ids=lambda arguments: arguments[0][2:30],
)
def test_a_refused_fit_touches_nothing_of_a_finished_run(
    workspace: Path, arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert (workspace / "run/logs/metrics.csv").stat().st_size > 0
    refuse(capfd, *arguments)


def test_a_fit_beside_a_running_one_touches_nothing(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workspace / "run/checkpoints/.adapruner-999999999-last.ckpt.tmp").write_text("of a run on another machine")
    other = FolderLock()
    other.take(workspace / "run")
    assert "expected no other run at work in run, got one" in refuse(capfd)
    other.release()


def test_a_refused_fit_leaves_no_folder(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refuse(capfd, "--trainer.default_root_dir=new/deep/run", "--pruning.budget.pruned_fraction=0.99")
    refuse(capfd, "--trainer.logger.init_args.save_dir=new/logs", "--pruning.search.seed=7")


def test_without_a_logger_of_its_own_numbers_go_where_the_run_goes(workspace: Path) -> None:
    before = (workspace / "run/logs/metrics.csv").stat().st_mtime_ns
    fit("--trainer.default_root_dir=other", "--trainer.logger=null")
    assert (workspace / "other/logs/metrics.csv").stat().st_size > 0
    assert (workspace / "run/logs/metrics.csv").stat().st_mtime_ns == before
    assert not (workspace / "lightning_logs").exists()


def test_earlier_metrics_stay_and_the_accepted_run_goes_on(workspace: Path) -> None:
    first = (workspace / "run/logs/metrics.csv").read_text()
    plan = read_plan("run/plan.json").hash
    (workspace / "run/checkpoints/.adapruner-999999999-last.ckpt.tmp").write_text("of a killed run")
    (workspace / "run/.notes.99999.tmp").write_text("mine")
    fit()
    assert (workspace / "run/logs/metrics-1.csv").read_text() == first
    assert (workspace / "run/logs/metrics.csv").stat().st_size > 0
    assert read_plan("run/plan.json").hash == plan
    assert sorted(p.name for p in (workspace / "run/checkpoints").iterdir()) == ["last.ckpt"]
    assert (workspace / "run/.notes.99999.tmp").exists()
    assert not list((workspace / "run").rglob(".adapruner-*"))


def test_every_file_of_a_run_has_the_mode_of_a_new_one(workspace: Path) -> None:
    before = os.umask(0o027)
    try:
        fit("--trainer.default_root_dir=other", "--trainer.logger.init_args.save_dir=other")
    finally:
        os.umask(before)
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in Path("other").rglob("*") if path.is_file()}
    assert {
        "other/statistics.safetensors",
        "other/grams.safetensors",
        "other/checkpoints/last.ckpt",
        "other/model/model.safetensors",
    } <= set(modes)
    assert set(modes.values()) == {"0o640"}, modes


@pytest.mark.parametrize(
    ("name", "way"), [("statistics.safetensors", "folder"), ("study.journal", "dangling link"), ("logs/metrics.csv", "loop")]
)
def test_what_stands_in_the_place_of_a_file(workspace: Path, name: str, way: str, capfd: pytest.CaptureFixture[str]) -> None:
    """All files and ways: ``tests/files/test_folder_lock.py``."""
    put_in_place(workspace / "run" / name, way)
    assert re.search(rf"folder: expected a file at (.*/)?run/{name}, got a (folder|link that leads nowhere); move it away", refuse(capfd))


def tensor_gone(record: dict[str, Any]) -> None:
    record["state_dict"].pop(next(name for name in record["state_dict"] if name.endswith("base_layer.weight")))


def adapter_gone(record: dict[str, Any]) -> None:
    record["state_dict"].pop(next(name for name in record["state_dict"] if "lora_B" in name))


def optimizer_gone(record: dict[str, Any]) -> None:
    record["optimizer_states"] = []


def optimizer_emptied(record: dict[str, Any]) -> None:
    record["optimizer_states"][0]["state"] = {}


def optimizer_short(record: dict[str, Any]) -> None:
    record["optimizer_states"][0]["state"].pop(0)


def loops_gone(record: dict[str, Any]) -> None:
    del record["loops"]


def nan_weight(record: dict[str, Any]) -> None:
    next(v for n, v in record["state_dict"].items() if "lora_A" in n)[0] = float("nan")


def infinite_moment(record: dict[str, Any]) -> None:
    record["optimizer_states"][0]["state"][0]["exp_avg"][0] = float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensor_gone, r"expected every tensor of the model, got none for model\.layers"),
        (adapter_gone, r"expected every tensor of the model, got none for .*\.lora_B"),
        (optimizer_gone, r"expected the state of the optimizer, got none"),
        (optimizer_emptied, r"expected the optimizer's state of \d+ tensors, got that of 0"),
        (optimizer_short, r"expected the optimizer's state of \d+ tensors, got that of \d+"),
        (loops_gone, r"expected 'loops', without which training cannot go on, got none"),
        (nan_weight, r"expected finite weights, got inf or nan in .*lora_A"),
        (infinite_moment, r"expected a finite state of the optimizer, got inf or nan"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_before_the_search(
    workspace: Path, change: Callable[[dict[str, Any]], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    record = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    change(record)
    torch.save(record, "changed.ckpt")
    shutil.rmtree("run")
    assert re.search(rf"ckpt_path: {message}.* in changed\.ckpt; take another", refuse(capfd, "--ckpt_path=changed.ckpt"))


def test_a_checkpoint_that_was_changed_is_not_gone_on_from(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run's own is found without being named: then recovery starts anew, and ends where it did."""
    weights = (workspace / "run/model/model.safetensors").read_bytes()
    record = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    nan_weight(record)
    torch.save(record, "run/checkpoints/last.ckpt")
    fit()
    assert "recovery starts anew: run/checkpoints/last.ckpt is damaged (no digest)" in capfd.readouterr().out
    assert (workspace / "run/model/model.safetensors").read_bytes() == weights


def test_a_plan_of_the_search_may_be_given_to_a_run_in_its_folder(workspace: Path) -> None:
    hash_before = read_plan("run/plan.json").hash
    fit("--pruning.plan=run/plan.json")
    assert read_plan("run/plan.json").hash == hash_before
    assert not Path("run/plan-1.json").exists()


def test_another_recipe_in_a_folder_without_a_search_keeps_the_earlier_plan(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("run")
    plain = ("--pruning.reconstruction=null", "--recovery=null", "--report=null", "--export=null")
    fit("--pruning.recipe={coefficients: {l2: 1.0}}", *plain)
    first = Path("run/plan.json").read_text()
    fit("--pruning.recipe={coefficients: {random: 1.0}}", *plain)
    assert Path("run/plan-1.json").read_text() == first
    assert re.search(r"keeps the plan [0-9a-f]{16}, of an earlier run in run, as plan-1\.json", capfd.readouterr().out)


@pytest.mark.parametrize("size", ["16k", "1800k"])
def test_a_full_disk(workspace: Path, size: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A small file system of its own: what will be written is compared with it before the search; what still does not fit is one line."""
    disk = workspace / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(SystemExit, match=r"^2$"):
            fit(f"--trainer.default_root_dir={disk}/run", f"--trainer.logger.init_args.save_dir={disk}/run")
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert re.search(r"adapruner: error: .+: expected .+, got .+; make room.+ goes on.*\n$", said), said
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_folder_that_is_renamed_is_one_line(
    workspace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
    from adapruner.search.optuna_study import OptunaStudy

    for owner, name in ((OptunaStudy, "tell"), (LoRARecoveryCallback, "on_train_batch_end"), (LoRARecoveryCallback, "on_fit_end")):
        inner = getattr(owner, name)

        def renamed(*arguments: Any, inner: Any = inner, **options: Any) -> Any:
            if Path("run").exists():
                Path("run").rename("moved")
            return inner(*arguments, **options)

        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("moved", ignore_errors=True)
        monkeypatch.setattr(owner, name, renamed)
        with pytest.raises(SystemExit, match=r"^2$"):
            fit()
        monkeypatch.setattr(owner, name, inner)
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("adapruner: error")]
        assert len(said) == 1
        assert re.search(r"to stay where it was.*, got none any more; put it back", said[0]), said
        assert not Path("run").exists()
