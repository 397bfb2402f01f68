"""What ``adapruner export`` refuses: one line, before any work, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adapruner.errors import ModelError
from adapruner.export import writing
from adapruner.export.loading import load
from adapruner.export.verification import Verification
from tests.cli.export.finished_run import (
    Finished,
    change_checkpoint,
    checkpoint_of,
    cut_short,
    export,
    logits_of,
    only_model,
    point_to,
    refused,
)
from tests.tiny import save_tiny


def tampered_plan(run: Finished) -> None:
    text = (run.folder / "plan.json").read_text()
    record = json.loads(text)
    group = next(name for name, kept in record["kept"].items() if len(kept) > 1)
    record["kept"][group] = record["kept"][group][1:]
    (run.folder / "plan.json").write_text(json.dumps(record))


def other_base(run: Finished) -> None:
    """The same shapes, other values."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(run.base, "base")
    weights = load_file("base/model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, "base/model.safetensors", {"format": "pt"})
    point_to("base")


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
    monkeypatch.setattr(writing, "verify_export", lambda *_: Verification("float32", 0.5, 1.0, 1.0))
    refused(capsys, "export: expected the logits of the model, got a largest difference of 5.0e-01", "run", "out")
    assert Path("out/model.safetensors").read_bytes() == before
    assert sorted(os.listdir()) == ["out", "run"]


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
