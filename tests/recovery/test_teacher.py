"""What the teacher says, written down: the same in memory and on disk, found in any order, made once, and again where it is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapruner.errors import ConfigurationError
from adapruner.models import next_token_loss
from adapruner.recovery import teacher as teacher_module
from adapruner.recovery.distillation import Distillation, DistillationConfig, TopTokens, training_loss
from adapruner.recovery.teacher import TeacherTargets, write_down
from tests.tiny import random_windows, tiny_llama

CONFIG = DistillationConfig(0.5, temperature=2.0, top_k=5, batch_size=2)


def padded_windows(rows: int = 9) -> Any:
    """Padding at the ends, prompts that are not counted, and one row of which nothing is."""
    windows = random_windows(rows, 12, seed=4)
    for row in range(rows):
        windows.attention_mask[row, 12 - row % 4 :] = 0
        windows.labels[row, 12 - row % 4 :] = -100
        windows.labels[row, : row % 3] = -100
    windows.labels[rows - 4] = -100
    return windows


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows a file, seven positions' logits at a time."""
    monkeypatch.setattr(teacher_module, "PART_BYTES", 2 * 12 * (8 * CONFIG.top_k + 4))
    monkeypatch.setattr(next_token_loss, "MOST_BYTES", 4 * 96 * 7)


def batch_of(windows: Any, rows: list[int]) -> dict[str, torch.Tensor]:
    return {name: getattr(windows, name)[rows] for name in ("input_ids", "attention_mask", "labels")}


def expected(model: Any, batch: dict[str, torch.Tensor]) -> TopTokens:
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    rows = [logits[r, t] for r in range(len(logits)) for t in range(11) if batch["labels"][r, t + 1] != -100]
    return TopTokens.of_logits(torch.stack(rows), CONFIG.top_k, CONFIG.temperature)


def same(found: TopTokens, other: TopTokens, tolerance: float = 0.0) -> None:
    assert torch.equal(found.index, other.index)
    torch.testing.assert_close(found.log_probs, other.log_probs, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.log_rest, other.log_rest, rtol=0, atol=tolerance)


@pytest.mark.parametrize("on_disk", [False, True])
def test_it_is_the_models_own_in_any_order(tmp_path: Path, small_parts: None, on_disk: bool) -> None:
    model, windows = tiny_llama().train(), padded_windows()
    targets = write_down(model, windows, CONFIG, tmp_path if on_disk else None)
    assert model.training
    files = sorted(path.name for path in (tmp_path / "teacher").glob("*")) if on_disk else []
    assert files == ([f"{n:05d}.safetensors" for n in range(5)] if on_disk else [])
    for rows in ([0, 1, 2, 3], [8, 4, 5, 0], [7]):
        batch = batch_of(windows, rows)
        same(targets.of(batch), expected(model.eval(), batch), 1e-5)
    unpadded = {name: value for name, value in batch_of(windows, [0, 4]).items() if name != "attention_mask"}
    same(targets.of(unpadded), targets.of(batch_of(windows, [0, 4])))  # a batch without padding may have no mask


def test_a_window_that_it_has_not_read_is_refused() -> None:
    targets = write_down(tiny_llama(), padded_windows(), CONFIG)
    other = batch_of(random_windows(2, 12, seed=5), [0, 1])
    with pytest.raises(ConfigurationError, match=r"recovery\.distillation: expected batches of the windows that the teacher has read"):
        targets.of(other)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Windows that the teacher reads, batch by batch."""
    rows: list[int] = []

    def parts(model: Any, **inputs: Any) -> Any:
        rows.append(len(inputs["input_ids"]))
        return next_token_loss.logit_parts(model, **inputs)

    monkeypatch.setattr(teacher_module, "logit_parts", parts)
    return rows


def test_it_is_said_how_much_and_made_once(tmp_path: Path, small_parts: None, read: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    model, windows = tiny_llama(), padded_windows()
    first = write_down(model, windows, CONFIG, tmp_path)
    counted = int((windows.labels[:, 1:] != -100).sum())
    said = capsys.readouterr().out
    assert f"writes down the 5 most likely of 96 tokens at {counted} positions: 0.0 MiB in {tmp_path / 'teacher'}" in said
    assert sum(read) == len(windows)
    assert sum(file.stat().st_size for file in (tmp_path / "teacher").iterdir()) > counted * 44
    again = write_down(model, windows, CONFIG, tmp_path)
    assert sum(read) == len(windows)  # nothing more
    assert f"takes what the teacher says of {counted} tokens from" in capsys.readouterr().out
    same(first.of(batch_of(windows, [3, 1])), again.of(batch_of(windows, [3, 1])))


@pytest.mark.parametrize("left", ["killed", "cut", "flipped"])
def test_what_is_missing_or_damaged_is_made_again_and_no_more(
    tmp_path: Path, small_parts: None, read: list[int], capsys: pytest.CaptureFixture[str], left: str
) -> None:
    model, windows = tiny_llama(), padded_windows()
    whole = write_down(model, windows, CONFIG)
    write_down(model, windows, CONFIG, tmp_path)
    file = tmp_path / "teacher" / "00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.unlink() if left == "killed" else file.write_bytes(content[: len(content) // 2] if left == "cut" else content)
    read.clear()
    capsys.readouterr()
    found = write_down(model, windows, CONFIG, tmp_path)
    assert sum(read) == 2
    assert ("is damaged" in capsys.readouterr().out) == (left != "killed")
    same(found.of(batch_of(windows, [4])), whole.of(batch_of(windows, [4])))


def test_of_other_weights_windows_or_settings_it_is_made_anew(tmp_path: Path, small_parts: None) -> None:
    model, windows = tiny_llama(), padded_windows()
    identities = [write_down(model, windows, CONFIG, tmp_path).identity]
    for config in (DistillationConfig(0.5, 1.0, 5), DistillationConfig(0.5, 2.0, 4)):
        identities.append(write_down(model, windows, config, tmp_path).identity)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5].add_(1.0)
    identities.append(write_down(model, windows, CONFIG, tmp_path).identity)
    changed = write_down(model, windows, CONFIG, tmp_path)
    same(changed.of(batch_of(windows, [2])), expected(model, batch_of(windows, [2])), 1e-5)
    shorter = padded_windows(5)
    identities.append(write_down(model, shorter, CONFIG, tmp_path).identity)
    assert len(set(identities)) == 5
    assert len(list((tmp_path / "teacher").iterdir())) == 3  # of the longer text nothing is left
    assert write_down(model, windows, DistillationConfig(1.0, 2.0, 5)).identity == identities[3]  # how it is weighed is of no matter


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapruner.files import atomic

    monkeypatch.setattr(atomic, "_free", lambda path: 100)
    with pytest.raises(ConfigurationError, match=r"folder: expected .* of room for .*teacher, got"):
        write_down(tiny_llama(), padded_windows(), CONFIG, tmp_path)


def test_the_loss_of_its_targets_is_that_of_whole_logits(small_parts: None) -> None:
    """Rows, padding and parts meet: the student is another model than the teacher."""
    windows, student, model = padded_windows(), tiny_llama(), tiny_llama()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    targets: TeacherTargets = write_down(model, windows, CONFIG)
    batch = batch_of(windows, [6, 5, 2, 1])

    class Whole:
        identity = "whole"

        def of(self, batch: dict[str, torch.Tensor]) -> TopTokens:
            return expected(model, batch)

    found, wanted = (training_loss(student, Distillation(source, CONFIG), batch) for source in (targets, Whole()))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert abs(float((found - training_loss(student, None, batch)).detach())) > 1e-2


def test_files_that_another_text_replaced_are_not_taken_for_the_first(tmp_path: Path) -> None:
    model, windows = tiny_llama(), padded_windows()
    first = write_down(model, windows, CONFIG, tmp_path)
    write_down(model, random_windows(9, 12, seed=8), CONFIG, tmp_path)
    with pytest.raises(ConfigurationError, match="expected what the teacher said of this text"):
        first.of(batch_of(windows, [0]))
