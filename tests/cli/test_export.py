"""``adapruner export`` on what a real, tiny ``fit`` left behind. The oracle is the model that the run held at its end."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from adapruner.cli import main
from adapruner.errors import ModelError
from adapruner.export import reexport, writing
from adapruner.export.base_model import place_of_model
from adapruner.export.formats import FORMATS, FormatRecord
from adapruner.export.loading import load
from adapruner.export.options import ExportOptions
from adapruner.export.run_folder import CONFIG_NOTE
from adapruner.export.staging import is_export
from adapruner.files.digests import seal_lines
from adapruner.pruning.plan import read_plan
from tests.tiny import random_windows, save_tiny

ROOT = Path(__file__).parents[2]
IDS = torch.arange(4, 40)[None]


@dataclass(frozen=True)
class Finished:
    """A run at its end."""

    folder: Path
    base: Path
    logits: torch.Tensor


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Search, surgery, four steps of LoRA, report and export; ``config.yaml`` holds what the command line would write."""
    from lightning import LightningDataModule, Trainer

    from adapruner.callbacks.compression_report import CompressionReportCallback
    from adapruner.callbacks.lora_recovery import LoRARecoveryCallback
    from adapruner.callbacks.pruned_export import PrunedExportCallback
    from adapruner.callbacks.pruning_search import PruningSearchCallback
    from adapruner.module import PrunableCausalLM
    from adapruner.pruning.budget import Budget
    from adapruner.recovery.lora import LoRAConfig
    from adapruner.search.space import SearchSpace
    from adapruner.search.study import SearchConfig

    class Data(LightningDataModule):
        calibration_windows = random_windows(4, 16, seed=1)
        search_windows = random_windows(6, 16, seed=2)
        evaluation_windows = {("held out", 16): random_windows(6, 16, seed=3)}  # noqa: RUF012

        def train_dataloader(self) -> Any:
            return DataLoader(random_windows(16, 16, seed=4), batch_size=4)  # type: ignore[arg-type]

    top = tmp_path_factory.mktemp("export-command")
    base, folder = save_tiny(top / "base", intermediate_size=480, initializer_range=0.15), top / "run"
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A base model\n")
    module = PrunableCausalLM(str(base), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-2))
    callbacks = [
        PruningSearchCallback(Budget(0.3), SearchConfig(n_trials=2, chunks=2, space=SearchSpace(metrics=["l2", "gate_fisher"]))),
        LoRARecoveryCallback(LoRAConfig(r=2, alpha=4, dropout=0.0)),
        CompressionReportCallback(latency_seq_len=16, latency_repeats=1),
        PrunedExportCallback(verify=False),
    ]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", devices=1, max_steps=4, callbacks=callbacks, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, datamodule=Data())
    config = {"seed_everything": 5, "model": {"name_or_path": str(base), "dtype": "auto", "revision": None}, "data": {"seed": 3}}
    (folder / "config.yaml").write_text(seal_lines(yaml.safe_dump(config), CONFIG_NOTE))
    return Finished(folder, base, logits_of(module.model))


@pytest.fixture
def run(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """A copy of the run that a test may damage, in the working directory as ``run``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.folder, tmp_path / "run")
    return Finished(Path("run"), finished.base, finished.logits)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits.float()


def checkpoint_of(run: Finished) -> Path:
    return next(run.folder.rglob("*.ckpt"))


def change_checkpoint(run: Finished, **changes: Any) -> None:
    record = torch.load(checkpoint_of(run), weights_only=True)
    torch.save({key: value for key, value in {**record, **changes}.items() if value is not None}, checkpoint_of(run))


def export(*arguments: Any) -> None:
    main(["export", *map(str, arguments)])


def test_the_checkpoint_gives_the_model_that_the_run_ended_with(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run.folder / "model")
    export("run", "out")
    torch.testing.assert_close(logits_of(load("out")), run.logits, rtol=0, atol=1e-5)
    said = capsys.readouterr().out
    assert "takes the weights of step 4 from run/checkpoints/" in said
    assert "loads in a fresh process; largest logit difference" in said
    assert sorted(os.listdir()) == ["out", "run"]
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained("out")("w1 w5")["input_ids"] == [5, 9]
    card = Path("out/README.md").read_text()
    for part in (
        "license: mit",
        "seeds: everything 5, data 3",
        "| adapruner | recovered |",
        "LoRA of rank 2, alpha 4, 4 steps",
        "### Cost",
    ):
        assert part in card


@pytest.mark.parametrize(
    ("moved", "arguments", "message"),
    [
        ((), (), ""),
        (("run",), (), ""),
        (("run", "base"), (), ""),
        (("base",), (), r"model: expected the base model of the run, got nothing at \S+/base; give its folder by --model"),
        (("base",), ("--model", "../else/base"), ""),
    ],
    ids=["from another folder", "run moved", "both moved", "base gone", "base named"],
)
def test_a_local_base_model_is_found_again(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moved: tuple[str, ...],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    """The run was started in ``first`` with ``--model.name_or_path base``."""
    first, other = tmp_path / "first", tmp_path / "else"
    for folder in (first, other):
        folder.mkdir()
    shutil.copytree(finished.folder, first / "run", ignore=shutil.ignore_patterns("model"))
    shutil.copytree(finished.base, first / "base")
    monkeypatch.chdir(first)
    text = yaml.safe_dump({"model": {"name_or_path": "base", "dtype": "auto", "revision": None}})
    (first / "run" / "config.yaml").write_text(place_of_model("base", Path("run")) + text)
    for name in moved:
        (first / name).rename(other / name)
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    run = (other if "run" in moved else first) / "run"
    if message:
        with pytest.raises(SystemExit, match=r"^2$"):
            export(run, "out", *arguments)
        assert re.search(message, capsys.readouterr().err)
        return
    export(run, "out", "--no-verify", *arguments)
    torch.testing.assert_close(logits_of(load("out")), finished.logits, rtol=0, atol=1e-5)


def test_it_is_what_the_callback_wrote(run: Finished) -> None:
    export("run", "out", "--no-verify")
    theirs, ours = load("run/model").state_dict(), load("out").state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6, msg=name)
    assert (Path("out/config.json")).read_text() == Path("run/model/config.json").read_text()


def test_adapters_kept_apart_give_the_same_model(run: Finished) -> None:
    from peft import PeftModel

    export("run", "out", "--adapters", "folder")
    plain = load("out")
    assert (logits_of(plain) - run.logits).abs().max() > 1e-2  # the recovery is not in it
    adapted = PeftModel.from_pretrained(plain, "out/adapter")
    torch.testing.assert_close(logits_of(adapted), run.logits, rtol=0, atol=1e-5)
    settings = json.loads(Path("out/adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None  # theirs would be a path on this machine
    assert str(run.base) not in Path("out/adapter/README.md").read_text()
    assert 'PeftModel.from_pretrained(model, f"{folder}/adapter")' in Path("out/README.md").read_text()


def test_adapters_kept_apart_can_be_merged_later(run: Finished) -> None:
    export("run", "apart", "--adapters", "folder", "--no-verify")
    export("apart", "merged", "--no-verify")
    torch.testing.assert_close(logits_of(load("merged")), run.logits, rtol=0, atol=1e-5)
    assert not Path("merged/adapter").exists()
    assert "PeftModel" not in Path("merged/README.md").read_text()
    export("apart", "again", "--adapters", "folder", "--max_shard_size", "20KB", "--no-verify")
    assert Path("again/adapter/adapter_model.safetensors").read_bytes() == Path("apart/adapter/adapter_model.safetensors").read_bytes()
    assert Path("again/README.md").read_text() == Path("apart/README.md").read_text()
    shutil.copytree("apart", "run/model", dirs_exist_ok=True)  # a run that kept them apart, and lost its checkpoint
    checkpoint_of(run).unlink()
    export("run", "out", "--adapters", "folder", "--no-verify")
    assert Path("out/adapter/adapter_model.safetensors").is_file()


def test_an_export_is_written_again_without_a_base_model(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    export("run/model", "half", "--dtype", "bfloat16", "--max_shard_size", "30KB")
    assert "takes the finished export in run/model" in capsys.readouterr().out
    again, expected = load("half"), load("run/model").to(torch.bfloat16).state_dict()
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    shards = json.loads(Path("half/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(shards.values())) > 1
    names = {path.name for path in Path("half").iterdir() if not path.name.startswith("model")}
    assert names == {path.name for path in Path("run/model").iterdir() if not path.name.startswith("model")}
    assert Path("half/README.md").read_text().endswith("Written again in bfloat16, after these measurements.\n")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_that_asked_for(run: Finished, dtype: str) -> None:
    export("run", "out", "--dtype", dtype, "--no-verify")
    assert {tensor.dtype for tensor in load("out").parameters()} == {getattr(torch, dtype)}
    assert f"Weights: written in {dtype}, after these measurements" in Path("out/README.md").read_text()


def test_without_a_checkpoint_the_finished_model_serves(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint_of(run).unlink()
    export("run", "out", "--no-verify")
    assert "takes the finished export in run/model" in capsys.readouterr().out
    torch.testing.assert_close(logits_of(load("out")), run.logits, rtol=0, atol=1e-5)


def test_a_checkpoint_before_the_end_of_the_run_is_taken_only_when_named(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    change_checkpoint(run, global_step=2)
    export("run", "out", "--no-verify")
    assert "takes the finished export in run/model" in capsys.readouterr().out
    export("run", "earlier", "--no-verify", "--checkpoint", checkpoint_of(run))
    assert "takes the weights of step 2 from" in capsys.readouterr().out
    assert "recovered" not in Path("earlier/README.md").read_text()  # the report's numbers are not its


def test_the_last_of_several_checkpoints_is_taken(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("run/model")
    shutil.copy(checkpoint_of(run), "run/earlier.ckpt")
    os.utime("run/earlier.ckpt", (1, 1))
    export("run", "out", "--no-verify")
    assert "from run/checkpoints/" in capsys.readouterr().out


def test_an_earlier_export_is_replaced_as_a_whole(run: Finished) -> None:
    shutil.copytree("run/model", "out")
    Path("out/stale.txt").write_text("of the earlier one")
    export("run/model", "out", "--dtype", "float16", "--no-verify")
    assert not Path("out/stale.txt").exists()
    assert load("out").dtype == torch.float16
    assert sorted(os.listdir()) == ["out", "run"]


def tampered_plan(run: Finished) -> None:
    text = (run.folder / "plan.json").read_text()
    record = json.loads(text)
    group = next(name for name, kept in record["kept"].items() if len(kept) > 1)
    record["kept"][group] = record["kept"][group][1:]
    (run.folder / "plan.json").write_text(json.dumps(record))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_base(run: Finished) -> None:
    """The same shapes, other values."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(run.base, "base")
    weights = load_file("base/model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, "base/model.safetensors", {"format": "pt"})
    point_to("base")


def point_to(base: str) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["model"]["name_or_path"] = base
    Path("run/config.yaml").write_text(yaml.safe_dump(config))


def other_plan(run: Finished) -> None:
    record = json.loads((run.folder / "plan.json").read_text())
    group = next(name for name, kept in record["kept"].items() if len(kept) > 1)
    record["kept"][group] = record["kept"][group][1:]
    unhashed = {key: value for key, value in record.items() if key not in ("hash", "digest", "unit_parameters")}
    from adapruner.pruning.plan import PruningPlan

    PruningPlan(**unhashed).save(run.folder / "plan.json")


def lost_weight(run: Finished) -> None:
    weights = torch.load(checkpoint_of(run), weights_only=True)["state_dict"]
    weights.pop(next(name for name in weights if name.endswith("base_layer.weight")))
    change_checkpoint(run, state_dict=weights)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("ran", "w"))


def evil_checkpoint(run: Finished) -> None:
    with checkpoint_of(run).open("wb") as file:
        pickle.dump({"state_dict": {}, "adapruner_plan": Evil()}, file)


def sharded(run: Finished) -> None:
    checkpoint_of(run).unlink()
    Path("run/last.ckpt").mkdir()


def nothing_left(run: Finished) -> None:
    checkpoint_of(run).unlink()
    shutil.rmtree(run.folder / "model")


def only_model(run: Finished) -> None:
    checkpoint_of(run).unlink()


def no_recovery(run: Finished) -> None:
    change_checkpoint(run, adapruner_lora=None)


def broken_folder(run: Finished) -> None:
    only_model(run)
    cut_short(run.folder / "model" / "model.safetensors")


DAMAGES: list[tuple[Any, tuple[str, ...], str]] = [
    (tampered_plan, (), "plan run/plan.json: expected hash .*: the plan was changed; restore it or search again"),
    (lambda run: (run.folder / "plan.json").unlink(), (), "run: expected a run with plan.json, got run without it"),
    (lambda run: (run.folder / "plan.json").write_text("{"), (), "plan run/plan.json: expected JSON, got damage"),
    (lambda run: cut_short(checkpoint_of(run)), (), "checkpoint: expected a whole Lightning checkpoint .*, got damage in run/checkpoints"),
    (lambda run: checkpoint_of(run).write_bytes(b""), (), "checkpoint: expected a whole Lightning checkpoint"),
    (evil_checkpoint, (), "checkpoint: expected a whole Lightning checkpoint of tensors and plain values, got damage"),
    (sharded, (), "checkpoint: expected one file, got the sharded checkpoint run/last.ckpt"),
    (lost_weight, (), "checkpoint: expected the tensors of the pruned model, got others .*Missing key"),
    (lambda run: change_checkpoint(run, state_dict=None), (), "checkpoint: expected the checkpoint of a run, got no weights"),
    (lambda run: change_checkpoint(run, adapruner_plan=None), (), "checkpoint: expected the checkpoint of a pruned model, got no plan"),
    (lambda run: change_checkpoint(run, adapruner_lora={"rank": 2}), (), "checkpoint: expected the settings of LoRA, got others"),
    (other_plan, (), "checkpoint: expected the plan [0-9a-f]{16} of the run, got [0-9a-f]{16} in run/checkpoints"),
    (other_base, (), "plan: expected a plan for the model with fingerprint [0-9a-f]{16}, got one for .*; give that model, or search again"),
    (lambda run: point_to(str(save_tiny(Path("base")))), (), "plan: expected units 160 in group '0.ffn' of this model, got 480"),
    (lambda run: point_to("./gone"), (), "model.name_or_path: expected a folder or a hub name, got './gone', which is not there"),
    (lambda run: (run.folder / "config.yaml").unlink(), (), "run: expected the model's name in run/config.yaml, got none"),
    (lambda run: (run.folder / "config.yaml").write_text("a: [\n"), (), "run: expected YAML in run/config.yaml, got damage"),
    (
        nothing_left,
        (),
        "run: expected a checkpoint or an exported model, got a run without either .*; start the same fit again",
    ),
    (broken_folder, (), "weights: expected whole safetensors, got damage in run/model/model.safetensors"),
    (only_model, ("--adapters", "folder"), "adapters: expected adapters kept apart, got only the merged weights in run/model"),
    (no_recovery, ("--adapters", "folder"), "adapters: expected a run with LoRA recovery, got a checkpoint without adapters"),
    (lambda run: None, ("--checkpoint", "no.ckpt"), "checkpoint: expected a file, got none at no.ckpt"),
    (lambda run: None, ("--dtype", "float8"), "dtype: expected float32, bfloat16 or float16, got 'float8'"),
    (lambda run: None, ("--max_shard_size", "big"), "max_shard_size: expected a size such as 2GB, got 'big'"),
    (lambda run: None, ("--max_shard_size", "0GB"), "max_shard_size: expected a size such as 2GB, got '0GB'"),
    (lambda run: None, ("--adapters", "apart"), "adapters: expected merged or folder, got 'apart'"),
    (
        lambda run: None,
        ("--adapter", "folder"),
        "export: expected adapruner export RUN DIR .options., got unrecognized arguments: --adapter",
    ),
    (lambda run: None, ("--format", "ggu"), "format: expected a known export format, got 'ggu'; did you mean 'gguf'"),
    (lambda run: None, ("--format", "gguf", "--gguf", "a.gguf"), "gguf: expected one file, got --format gguf, too; leave one"),
    (lambda run: None, ("--format", "gguf", "--push", "me/small"), "push: expected a folder to upload, got --format gguf"),
    (lambda run: None, ("--format", "gguf", "--adapters", "folder"), "format: expected adapters merged, got --adapters folder"),
    (lambda run: None, ("--gguf", "a.gguf", "--adapters", "folder"), "gguf: expected adapters merged, got --adapters folder"),
    (lambda run: None, ("--pad", "--adapters", "folder"), "pad: expected adapters merged, got --adapters folder"),
    (lambda run: None, ("--gguf", "run/plan.json/a.gguf"), "gguf: expected a place that can be written, got a file, .*plan.json"),
    (lambda run: None, ("--push", "no owner"), "push: expected a hub name such as user/model, got 'no owner'"),
]


@pytest.mark.parametrize(("damage", "options", "message"), DAMAGES)
def test_what_cannot_work_is_one_line_and_writes_nothing(
    run: Finished, capsys: pytest.CaptureFixture[str], damage: Any, options: tuple[str, ...], message: str
) -> None:
    damage(run)
    before = sorted(Path().rglob("*"))
    refused(capsys, message, "run", "out", *options)
    assert sorted(Path().rglob("*")) == before


def refused(capsys: pytest.CaptureFixture[str], message: str, *arguments: Any) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^2$"):
        export(*arguments)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.match(f"adapruner: error: {message}", lines[0]), lines[0]


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("run", "mine", "folder: expected an empty folder or an earlier export, got other files in .*mine"),
        ("run", "mine/notes.txt", "folder: expected a folder, got the file .*notes.txt"),
        ("run", "mine/notes.txt/out", "folder: expected a place that can be written, got a file, .*notes.txt"),
        ("run", "locked/out", "folder: expected a place that can be written, got a folder without the right to write, .*locked"),
        ("run", "run/model", "folder: expected another folder than what is exported"),
        ("run/model", "run/model", "folder: expected another folder than what is exported"),
        ("run", "run", "folder: expected an empty folder or an earlier export, got other files in .*run"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_first(
    run: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: str, place: str, message: str
) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    Path("locked").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and real(path, mode))  # root may write anywhere
    monkeypatch.setattr(writing, "write_export", lambda *_, **__: pytest.fail("began to work"))
    refused(capsys, message, source, place)
    assert Path("mine/notes.txt").read_text() == "mine"


def test_a_wrong_command_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capsys, "run: expected the folder of a run, or an export, got no folder at", tmp_path / "gone", tmp_path / "out")
    refused(capsys, "export: expected adapruner export RUN DIR .options., got the following arguments are required: DIR", "run")


def test_no_code_of_a_checkpoint_runs(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    evil_checkpoint(run)
    with checkpoint_of(run).open("rb") as file:
        pickle.load(file)
    assert Path("ran").exists()  # it would
    Path("ran").unlink()
    refused(capsys, "checkpoint: expected a whole Lightning checkpoint", "run", "out")
    assert not Path("ran").exists()


def test_code_that_comes_with_a_base_model_is_not_run_whatever_the_run_says(run: Finished) -> None:
    shutil.copytree(run.base, "base")
    config = json.loads(Path("base/config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    Path("base/config.json").write_text(json.dumps(config))
    Path("base/evil.py").write_text(f"open({str(Path('ran').absolute())!r}, 'w').close()\n")
    point_to("base")
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    settings["model"]["trust_remote_code"] = True
    Path("run/config.yaml").write_text(yaml.safe_dump(settings))
    export("run", "out", "--no-verify")
    assert not Path("ran").exists()
    torch.testing.assert_close(logits_of(load("out")), run.logits, rtol=0, atol=1e-5)


def test_an_export_that_computes_something_else_is_not_left_behind(
    run: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("run/model", "out")
    before = Path("out/model.safetensors").read_bytes()
    monkeypatch.setattr(writing, "verify_export", lambda *_: 0.5)
    refused(capsys, "export: expected the logits of the model, got a largest difference of 5.0e-01", "run", "out")
    assert Path("out/model.safetensors").read_bytes() == before
    assert sorted(os.listdir()) == ["out", "run"]


class FakeGguf:
    """Notes what it is asked, in the place of the real format."""

    name = "gguf"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def check(self, target: Path, options: ExportOptions) -> None:
        self.seen.append((target, options.dtype))

    def write(self, folder: Path, target: Path, options: ExportOptions) -> FormatRecord:
        self.seen.append((folder.name, is_export(folder), read_plan(folder / "plan.json").hash, options.dtype))
        return FormatRecord(target, "for llama.cpp, llama in float16", ("a note",))


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch) -> FakeGguf:
    fake = FakeGguf()
    assert "gguf" in FORMATS
    monkeypatch.setitem(FORMATS._members, "gguf", fake)
    return fake


def test_gguf_is_written_of_the_whole_folder(run: Finished, capsys: pytest.CaptureFixture[str], gguf: FakeGguf) -> None:
    export("run", "out", "--no-verify", "--dtype", "float16", "--gguf", "small.gguf")
    assert gguf.seen == [(Path("small.gguf"), "float16"), ("out", True, read_plan("run/plan.json").hash, "float16")]
    said = capsys.readouterr().out
    assert "wrote small.gguf for llama.cpp, llama in float16" in said
    assert "adapruner: a note" in said
    assert is_export(Path("out"))


def test_another_format_is_written_alone(run: Finished, capsys: pytest.CaptureFixture[str], gguf: FakeGguf) -> None:
    export("run/model", "small.gguf", "--no-verify", "--format", "gguf")
    place = Path("small.gguf").absolute()
    assert gguf.seen == [(place, None), ("small", True, read_plan("run/plan.json").hash, None)]
    said = capsys.readouterr().out
    assert f"wrote {place} for llama.cpp, llama in float16" in said
    assert "exported" not in said
    assert os.listdir() == ["run"]  # the fake wrote nothing, and the folder that it was made of is gone


OWN_FORMAT = """
import json
from adapruner.export.formats import FormatRecord, register_export_format
from adapruner.errors import ConfigurationError

@register_export_format
class Shapes:
    name = "shapes"

    def check(self, target, options):
        if target.suffix != ".json":
            raise ConfigurationError(f"folder: expected a name that ends with .json, got {target.name}; rename it")

    def write(self, folder, target, options):
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        target.write_text(json.dumps(shapes))
        return FormatRecord(target, "with the shapes of all tensors")
"""


def test_a_user_s_own_file_adds_a_format(run: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_format.py").write_text(OWN_FORMAT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = ("--format", "shapes", "--import", "own_format.py")
    try:
        refused(capsys, "folder: expected a name that ends with .json, got out; rename it", "run", "out", *own)
        export("run", "out.json", "--no-verify", *own)
        assert f"wrote {Path('out.json').absolute()} with the shapes of all tensors" in capsys.readouterr().out
        expected = {name: list(tensor.shape) for name, tensor in load("run/model").state_dict().items()}
        assert json.loads(Path("out.json").read_text()) == expected
    finally:
        FORMATS.remove("shapes")


@pytest.mark.parametrize("source", ["run", "run/model"])
def test_padded_to_the_widest_layer_a_stock_class_loads_it(run: Finished, source: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert not reexport.is_stock(run.folder / "model")
    export(source, "out", "--pad", "--no-verify")
    stock = AutoModelForCausalLM.from_pretrained("out")
    assert type(stock).__module__.startswith("transformers.")
    torch.testing.assert_close(logits_of(stock), run.logits, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained("out")("w1 w5")["input_ids"] == [5, 9]
    card = Path("out/README.md").read_text()
    assert "padded with zeros to the widest layer" in card
    assert "license: mit" in card
    assert "| adapruner | recovered |" in card or source == "run/model"
    export("out", "again", "--pad", "--no-verify")  # nothing to widen any more
    torch.testing.assert_close(logits_of(load("again")), run.logits, rtol=0, atol=1e-5)


def test_a_push_comes_last_and_is_told(run: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from adapruner.export import push

    calls: list[Any] = []
    monkeypatch.setattr(push, "check_push", lambda name: calls.append(("check", name, Path("out").exists())))
    monkeypatch.setattr(push, "push_folder", lambda folder, name, text: calls.append((is_export(folder), name, text)) or "there")
    export("run/model", "out", "--no-verify", "--push", "me/small")
    plan = read_plan("run/plan.json").hash
    assert calls == [("check", "me/small", False), (True, "me/small", f"Pruned model, plan {plan}")]
    assert "pushed to there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [("out", "--gguf", "notes.txt"), ("notes.txt", "--format", "gguf"), ("deep/er/out", "--gguf", "notes.txt")]
)
def test_a_file_of_others_is_not_overwritten_and_nothing_is_left(run: Finished, arguments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    for content in ("years of work", "GGUF of others"):
        Path("notes.txt").write_text(content)
        with pytest.raises(SystemExit, match=r"^2$"):
            export("run", *arguments)
        assert capsys.readouterr().err.startswith("adapruner: error: gguf: expected a new name or an earlier export, got ")
        assert Path("notes.txt").read_text() == content
        assert sorted(os.listdir()) == ["notes.txt", "run"]


def test_a_refused_export_leaves_no_folder(run: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out while it is written: the folders above the target were made for it."""

    def refused(*_: Any, **__: Any) -> Any:
        raise ModelError("weights: expected others, got these; give others")

    monkeypatch.setattr(writing, "rebuild", refused)
    with pytest.raises(SystemExit, match=r"^2$"):
        export("run", "deep/er/out")
    assert capsys.readouterr().err == "adapruner: error: weights: expected others, got these; give others\n"
    assert os.listdir() == ["run"]


def test_a_link_to_a_folder_stays_one(run: Finished) -> None:
    Path("disk").mkdir()
    Path("out").symlink_to("disk/models/latest")
    with pytest.raises(SystemExit, match=r"^2$"):
        export("run", "out", "--no-verify")
    Path("disk/models/latest").mkdir(parents=True)
    for _ in range(2):
        export("run", "out", "--no-verify")
        assert Path("out").is_symlink()
        assert is_export(Path("disk/models/latest"))
        assert sorted(os.listdir("disk/models")) == ["latest"]


def test_an_export_that_was_killed_between_its_two_moves_is_said_and_found(run: Finished) -> None:
    export("run", "out", "--no-verify")
    killed = Path(".adapruner-999999999-out.new")
    (killed / "out").mkdir(parents=True)
    Path("out").rename(killed / "out.old")
    with pytest.raises(
        ModelError, match=r"got no folder at out; its export was ended: what there was is in .*999999999-out\.new, export again"
    ):
        load("out")
    before = (killed / "out.old" / "README.md").stat().st_ino
    with pytest.raises(SystemExit, match=r"^2$"):
        export("run", "out", "--checkpoint", "gone.ckpt")
    assert not Path("out").exists()  # nothing of ours is touched before the export is accepted
    export("run", "out", "--no-verify")
    assert load("out").config.model_type == "llama"
    assert Path("out/README.md").stat().st_ino != before
    assert sorted(os.listdir()) == ["out", "run"]


def test_every_file_of_an_export_has_the_mode_of_a_new_one(run: Finished) -> None:
    before = os.umask(0o027)
    try:
        export("run", "out", "--adapters", "folder", "--max_shard_size", "20KB", "--no-verify")
    finally:
        os.umask(before)
    modes = {str(path): path.stat().st_mode & 0o777 for path in Path("out").rglob("*") if path.is_file()}
    assert len([name for name in modes if name.endswith(".safetensors")]) > 3
    assert set(modes.values()) == {0o640}, modes


@pytest.mark.parametrize(
    "name", ["config.json", "plan.json", "model.safetensors", "tokenizer.json", "SHA256SUMS", "generation_config.json"]
)
@pytest.mark.parametrize("way", ["bit", "zeros", "empty", "folder", "link"])
def test_a_damaged_export_is_one_line(run: Finished, name: str, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = run.folder / "model" / name
    content = bytearray(file.read_bytes())
    file.unlink()
    content[len(content) // 2] ^= 1
    if way == "folder":
        file.mkdir()
    elif way == "link":
        file.symlink_to("nowhere")
    else:
        file.write_bytes({"bit": bytes(content), "zeros": bytes(len(content)), "empty": b""}[way])
    with pytest.raises(SystemExit, match=r"^2$"):
        export("run/model", "out")
    said = capsys.readouterr().err
    assert re.fullmatch(r"adapruner: error: .+: expected .+, got .+; .+\n", said), said
    assert os.listdir() == ["run"]


def test_the_configuration_of_another_run_gives_no_seeds(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["pruning"] = {"search": {"seed": 7}}
    for text, said in (
        (seal_lines(yaml.safe_dump(config), CONFIG_NOTE), "is not that of this run, whose report has other seeds"),
        (yaml.safe_dump(config), "is not as fit wrote it"),
    ):
        Path("run/config.yaml").write_text(text)
        export("run", "out", "--no-verify")
        assert said in capsys.readouterr().out
        assert re.findall("seeds: .*", Path("out/README.md").read_text()) == ["seeds: search 0"]  # the report's own
