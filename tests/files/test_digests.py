"""No damaged bit passes: every kind of file that we write, damaged in every way, against the reader that believes it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapruner.files.digests import (
    SUMS,
    DamagedError,
    check_sums,
    check_zip,
    lines_are_sealed,
    opened,
    seal_lines,
    seal_zip,
    sealed,
    write_sums,
)
from adapruner.files.tensor_file import read_tensors, write_tensors

NOTE = "digest"


def write_json(file: Path, seed: int) -> None:
    file.write_text(json.dumps(sealed({"values": [random.Random(seed + i).random() for i in range(20)], "who": "me"}), indent=1))


def write_checkpoint(file: Path, seed: int, ours: bool = True) -> None:
    torch.manual_seed(seed)
    torch.save({"weights": torch.randn(40, 40), "steps": [1, 2], "empty": torch.zeros(0)}, file)
    if ours:
        seal_zip(file)


def write_statistics(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    write_tensors(file, "key", {"a": torch.randn(30, 30), "b": torch.randn(7).bfloat16(), "c": torch.zeros(0), "d": torch.tensor(3)})


def write_lines(file: Path, seed: int) -> None:
    file.write_text(seal_lines(f"seed: {seed}\nmodel:\n  name: demo\n", NOTE))


def read_lines(file: Path) -> None:
    if not lines_are_sealed(file.read_text(), NOTE):
        raise DamagedError("lines")


#: Kind -> how it is written, with a seed, and read.
KINDS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], object]]] = {
    "a JSON record": (write_json, lambda file: opened(json.loads(file.read_text()))),
    "a checkpoint": (write_checkpoint, lambda file: check_zip(file, ours=True)),
    "a checkpoint of others": (lambda file, seed: write_checkpoint(file, seed, ours=False), check_zip),
    "statistics": (write_statistics, lambda file: read_tensors(file, "key")),
    "lines": (write_lines, read_lines),
}


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes, at: float = 0.6) -> bytes:
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def zeros(content: bytes) -> bytes:
    begin = len(content) // 3
    return content[:begin] + bytes(min(1 << 16, len(content) - begin)) + content[begin + (1 << 16) :]


@pytest.mark.parametrize("damage", [half, one_bit, zeros, lambda _: b""], ids=["half", "one bit", "64 KiB of zeros", "empty"])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    write, read = KINDS[kind]
    file = tmp_path / "file"
    write(file, 1)
    read(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises((ValueError, OSError), match=r".?"):  # JSON errors are ValueErrors, and so is DamagedError
        read(file)


@pytest.mark.parametrize("kind", ["a JSON record", "a checkpoint", "statistics", "lines"])
def test_no_flipped_bit_changes_what_is_read(tmp_path: Path, kind: str) -> None:
    """Wherever it is: found, or (in white space, in the digest's own name) without effect."""
    write, read = KINDS[kind]
    file, draw = tmp_path / "file", random.Random(0)
    write(file, 1)
    whole, meant, passed = file.read_bytes(), _content(file, kind), 0
    for _ in range(150):
        file.write_bytes(one_bit(whole, draw.random()))
        try:
            read(file)
        except (ValueError, OSError):
            continue
        passed += 1
        assert _content(file, kind) == meant
    assert passed < 60


def _content(file: Path, kind: str) -> object:
    if kind == "a JSON record":
        return {k: v for k, v in json.loads(file.read_text()).items() if k in ("values", "who")}
    if kind == "a checkpoint":
        return str(torch.load(file, weights_only=True))
    if kind == "statistics":
        return str(read_tensors(file, "key"))
    return [line for line in file.read_text().splitlines() if not line.startswith("#")]


def test_another_key_is_no_damage_and_no_file_either(tmp_path: Path) -> None:
    write_statistics(tmp_path / "file", 1)
    assert read_tensors(tmp_path / "file", "another key") is None
    assert read_tensors(tmp_path / "gone", "key") is None


def test_a_sealed_checkpoint_is_one_that_torch_reads_in_pieces(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "file", 1)
    assert torch.load(tmp_path / "file", mmap=True, weights_only=True)["steps"] == [1, 2]
    write_checkpoint(tmp_path / "file", 1, ours=False)
    with pytest.raises(DamagedError, match=r"^no digest$"):
        check_zip(tmp_path / "file", ours=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "inside").mkdir(parents=True)
    for name in ("config.json", "README.md", "inside/adapter.bin"):
        (made / name).write_text(f"what is in {name}")
    write_sums(made)
    return made


@pytest.mark.parametrize("name", ["config.json", "inside/adapter.bin"])
@pytest.mark.parametrize("way", ["bit", "gone", "empty", "folder", "dangling link", "loop"])
def test_a_folder_is_what_was_written(folder: Path, name: str, way: str) -> None:
    assert check_sums(folder) == []
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way in ("dangling link", "loop"):
        file.symlink_to(file.name if way == "loop" else "nowhere")
    elif way != "gone":
        file.write_bytes(one_bit(content) if way == "bit" else b"")
    with pytest.raises(DamagedError, match=rf"^{name} is not (there|what was written), by SHA256SUMS$"):
        check_sums(folder)
    check_sums(folder, lambda path: path.name not in name)  # not looked at


@pytest.mark.parametrize("content", ["", "abc", "0" * 64 + "  /etc/passwd\n", "0" * 64 + "  ../config.json\n", "\0" * 90])
def test_a_damaged_list_is_damage(folder: Path, content: str) -> None:
    (folder / SUMS).write_text(content)
    with pytest.raises(DamagedError, match=r"^SHA256SUMS is damaged$"):
        check_sums(folder)
    (folder / SUMS).unlink()
    assert check_sums(folder) == []  # of somebody who writes none
    with pytest.raises(DamagedError, match=r"^no SHA256SUMS$"):
        check_sums(folder, ours=True)


def test_a_model_card_may_be_rewritten_and_files_added(folder: Path) -> None:
    (folder / "README.md").write_text("better")
    (folder / "more.txt").write_text("mine")
    assert check_sums(folder) == ["README.md"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_the_list_is_the_one_that_sha256sum_reads(folder: Path) -> None:
    assert subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, check=False).returncode == 0
