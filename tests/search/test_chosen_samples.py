"""What a report shows of the calibration set that a run wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapruner.data.calibration_set import make_set
from adapruner.search.chosen_samples import EXCERPT, SHOWN, heaviest_samples
from tests.tiny import random_windows, word_tokenizer


def test_the_heaviest_samples_come_first(tmp_path: Path) -> None:
    windows, tokenizer = random_windows(4, 80, seed=5, sources=("books", "code")), word_tokenizer()
    weights = torch.tensor([0.05, 0.0, 0.25, 0.1, 0.06, 0.3, 0.04, 0.2])
    make_set(windows, tokenizer, weights).write(tmp_path / "set.json")
    found = heaviest_samples(tmp_path / "set.json")
    assert [(s["id"], s["source"]) for s in found] == [(5, "code"), (2, "books"), (7, "code"), (3, "books"), (4, "code")]
    assert len(found) == SHOWN
    assert [s["weight"] for s in found] == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.06])
    for sample in found:
        text = tokenizer.decode(windows.input_ids[sample["id"]])
        begins = sample["text"].removesuffix(" ...")
        assert text.startswith(begins)
        assert EXCERPT - 10 < len(sample["text"]) <= EXCERPT


def test_samples_of_a_source_that_weigh_the_same_stand_together(tmp_path: Path) -> None:
    windows = random_windows(4, 8, seed=5, sources=("books", "code"))
    make_set(windows, word_tokenizer(), torch.tensor([0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.2, 0.1])).write(tmp_path / "set.json")
    found = [(s["id"], s["source"], s["alike"]) for s in heaviest_samples(tmp_path / "set.json")]
    assert found == [(4, "code", 2), (0, "books", 4), (5, "code", 2)]
