"""The card says what another laboratory needs to get the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapruner.data.card import leaks_in_words, sources_in_words
from adapruner.data.run_data import RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.text_sets import TextSets
from adapruner.data.text_source import TextSource

from .words import numbered_source as source


@pytest.fixture
def data(tmp_path: Path, tokenizer: Any) -> RunData:
    return TextSets(
        CalibrationData([source(tmp_path, "b", 0), source(tmp_path, "a", 7)], samples_per_source=5, seq_len=16, other_seq_lens=[8]),
        SearchData([source(tmp_path, "x", 11)], samples=7, seq_len=24),
        RecoveryData([source(tmp_path, "r", 17)], samples=9, seq_len=16),
        [EvaluationSet("held", source(tmp_path, "e", 19), windows=[16, 32], limit=6)],
        seed=3,
    ).build(tokenizer)


def test_every_set_is_named_with_its_size_and_hash(data: RunData, tmp_path: Path) -> None:
    card = data.card
    assert card is not None
    assert json.loads(json.dumps(card)) == card
    found = [(row["role"], row["name"], row["windows"], row["seq_len"], row["hash"]) for row in card["sets"]]
    held = data.evaluation_windows
    assert data.recovery_windows is not None
    assert found == [
        ("calibration", "", 10, 16, data.calibration_windows.fingerprint),
        ("calibration", "", 10, 8, data.calibration_windows_at[8].fingerprint),
        ("search", "", 7, 24, data.search_windows.fingerprint),
        ("recovery", "", 9, 16, data.recovery_windows.fingerprint),
        ("evaluation", "held", 6, 16, held["held", 16].fingerprint),
        ("evaluation", "held", 6, 32, held["held", 32].fingerprint),
    ]
    assert card["sets"][0]["sources"] == [f"b: {tmp_path}/b.jsonl", f"a: {tmp_path}/a.jsonl"]
    assert card["sets"][2]["documents"] == len({h for row in data.search_windows.document_hashes for h in row.split()})
    assert card["seed"] == 3
    assert card["leaks"].startswith("checked: no document of 200 characters")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (TextSource("demo", demo="stdlib", split="test"), "demo: demo corpus stdlib, split test"),
        (TextSource("w", hub="org/set", config="raw", split="test", revision="abc"), "w: org/set, raw, split test, revision abc"),
        (
            TextSource("p", hub="org/set", column="sentence", documents=1100),
            "p: org/set, split train, first 1,100 documents, column sentence",
        ),
        (TextSource("f", path="text", part=[0.25, 0.5]), "f: text, part [0.25, 0.5)"),
        (TextSource("m", texts=["a", "b"], part=[0, 0.5]), "m: 2 texts in memory, part [0, 0.5)"),
        (TextSource("i", hub="org/set", instruction=True), "i: org/set, split train, instructions"),
    ],
)
def test_a_source_is_told_with_all_that_decides_its_documents(source: TextSource, words: str) -> None:
    assert sources_in_words([source]) == [words]


def test_a_switched_off_check_is_said() -> None:
    assert leaks_in_words(True) == "not checked (allow_leak)"
