"""``adapruner export`` on what a real, tiny ``fit`` left behind. The oracle is the model that the run held at its end."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from adapruner.errors import ModelError
from adapruner.export.base_model import place_of_model
from adapruner.export.loading import load
from adapruner.export.run_folder import CONFIG_NOTE
from adapruner.export.staging import is_export
from adapruner.files.digests import seal_lines
from tests.cli.export.finished_run import (
    Finished,
    change_checkpoint,
    checkpoint_of,
    export,
    logits_of,
)


def test_the_checkpoint_gives_the_model_that_the_run_ended_with(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run.folder / "model")
    export("run", "out")
    torch.testing.assert_close(logits_of(load("out")), run.logits, rtol=0, atol=1e-5)
    said = capsys.readouterr().out
    assert "takes the weights of step 4 from run/checkpoints/" in said
    assert "loads in a fresh process in float32; " in said
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
