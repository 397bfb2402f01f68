"""What a Python caller has at hand becomes the same windows as files with the same texts under the data module."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapruner.data.bos import BosRule
from adapruner.data.documents import Document
from adapruner.data.draw_windows import WindowDrawer
from adapruner.data.from_texts import check_forms, data_from_texts, evaluation_from_texts, windows_from_texts
from adapruner.data.run_data import PruningData, RunData
from adapruner.data.sets import CalibrationData, EvaluationSet, RecoveryData, SearchData
from adapruner.data.text_source import TextSource
from adapruner.data.windows import TextWindows, joined_windows
from adapruner.data_module import PruningDataModule
from adapruner.errors import ConfigurationError, DataError, written_as


def texts(start: int, count: int = 120, words: int = 40) -> list[str]:
    """Runs of numbered words, no two alike."""
    return [" ".join(f"w{(start + i * words + 7 * j) % 2000}" for j in range(words)) for i in range(count)]


WIKI, CODE, TRAIN, HELD = texts(0), [*texts(3), "", " "], texts(50, 420), texts(77, 30)
MANY = texts(1, 400)
SMALL: dict[str, int] = {"seq_len": 16, "search_seq_len": 24, "samples_per_source": 6, "search_samples": 7}


def file(folder: Path, name: str, content: list[str], part: list[float]) -> TextSource:
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in content))
    return TextSource(name, path=str(path), part=part)


def same(first: RunData, second: Any) -> bool:
    def rows(windows: TextWindows) -> Any:
        return [windows.fingerprint, windows.attention_mask.tolist(), windows.document_hashes, windows.source_names]

    assert first.fingerprint == second.fingerprint
    assert first.calibration_fingerprint == second.calibration_fingerprint
    assert rows(first.calibration_windows) == rows(second.calibration_windows)
    assert rows(first.search_windows) == rows(second.search_windows)
    assert list(first.evaluation_windows) == list(second.evaluation_windows)
    return True


@pytest.mark.parametrize("seed", [0, 5])
def test_texts_give_the_windows_of_a_data_module_over_files(tokenizer: Any, tmp_path: Path, seed: int) -> None:
    module = PruningDataModule(
        CalibrationData([file(tmp_path, n, t, [0.0, 0.75]) for n, t in (("wiki", WIKI), ("code", CODE))], 6, 16),
        SearchData([file(tmp_path, n, t, [0.75, 1.0]) for n, t in (("wiki", WIKI), ("code", CODE))], 7, 24),
        RecoveryData([file(tmp_path, "texts", TRAIN, [0.0, 1.0])], seq_len=32),
        [EvaluationSet("held", file(tmp_path, "held", HELD, [0.0, 1.0]), [20])],
        seed=seed,
    )
    module.tokenizer_object = tokenizer
    module.setup("fit")
    given = {"wiki": WIKI, "code": CODE}
    options: Any = {**SMALL, "recovery": TRAIN, "recovery_seq_len": 32, "evaluation": {"held": HELD}, "window": 20, "seed": seed}
    data = data_from_texts(given, tokenizer, **options)
    assert isinstance(data, PruningData)
    assert same(data, module)
    assert torch.equal(data.recovery_windows.input_ids, module.recovery_windows.input_ids)  # type: ignore[union-attr]
    assert len(data.calibration_windows) == 12
    assert len(data.search_windows) == 7
    assert data.seed == seed


def test_search_texts_of_its_own_leave_the_pool_whole(tokenizer: Any, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    module = PruningDataModule(
        CalibrationData([file(tmp_path, "texts", MANY, [0.0, 1.0])]), SearchData([file(other, "texts", TRAIN, [0.0, 1.0])])
    )
    module.tokenizer_object = tokenizer
    module.setup()
    assert same(data_from_texts(MANY, tokenizer, search=TRAIN), module)  # every default is the data module's


def test_a_data_set_is_its_column_of_texts(tokenizer: Any) -> None:
    import datasets

    given = datasets.DatasetDict({"wiki": datasets.Dataset.from_dict({"text": WIKI}), "code": datasets.Dataset.from_dict({"text": CODE})})
    assert same(data_from_texts(given, tokenizer, **SMALL), data_from_texts({"wiki": WIKI, "code": CODE}, tokenizer, **SMALL))
    alone = data_from_texts(given["wiki"], tokenizer, **SMALL)
    assert same(alone, data_from_texts(WIKI, tokenizer, **SMALL))
    assert alone.calibration_windows.source_names == ["texts"]
    with pytest.raises(DataError, match=r"calibration: expected a data set with a column 'text' or 'messages', got body; rename_column it"):
        data_from_texts(datasets.Dataset.from_dict({"body": WIKI}), tokenizer)


def test_token_windows_are_taken_whole_and_the_last_quarter_is_held_out() -> None:
    ids = torch.arange(4, 4 + 9 * 6).view(9, 6)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    forms = [{"input_ids": ids, "attention_mask": mask}, SimpleNamespace(input_ids=ids.int(), attention_mask=mask)]
    forms.append({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})
    found = [data_from_texts(form, None) for form in forms]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert torch.equal(found[0].calibration_windows.input_ids, ids[:7])
    assert found[0].calibration_windows.labels[0].tolist() == [*ids[0, :4].tolist(), -100, -100]
    assert sorted(found[0].search_windows.input_ids.tolist()) == ids[7:].tolist()
    assert list(found[0].calibration_windows_at) == [6]
    given = data_from_texts(ids, None, search=ids + 100, evaluation={"a": ids + 200, "b": ids + 300}, recovery=ids)
    assert torch.equal(given.calibration_windows.input_ids, ids)
    assert list(given.evaluation_windows) == [("a", 6), ("b", 6)]
    with pytest.raises(DataError, match="expected calibration and search to share no document, got 1 in both"):
        data_from_texts(ids, None, search=ids[4:5])


def test_each_source_of_windows_gives_a_quarter(tokenizer: Any) -> None:
    two = {"a": torch.arange(48).view(8, 6), "b": torch.arange(100, 124).view(4, 6), "c": WIKI}
    data = data_from_texts(two, tokenizer, **{**SMALL, "seq_len": 6, "search_seq_len": 6, "search_samples": 6})
    assert data.calibration_windows.source_names == ["a", "b", "c"]
    assert data.calibration_windows.source_index.tolist() == [0] * 6 + [1] * 3 + [2] * 6
    assert data.search_windows.source_index.bincount().tolist() == [2, 1, 2]
    own = data_from_texts(data.calibration_windows, None)
    assert own.calibration_windows.source_index.bincount().tolist() == [5, 2, 5]


def test_less_text_than_asked_for_is_taken_and_said_once(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_from_texts({"wiki": WIKI, "few": texts(9, 20)}, tokenizer, seq_len=64, search_seq_len=32, search_samples=16)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    pool, searched = (w.source_index.bincount().tolist() for w in (data.calibration_windows, data.search_windows))
    assert pool[0] == 64 > pool[1] >= 4
    assert searched[0] == 8 > searched[1] >= 2
    assert f"less text than asked for: calibration 'few' {pool[1]} of 64 windows, search 'few' {searched[1]} of 8 windows\n" in said
    data_from_texts(WIKI, tokenizer, **SMALL)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, r"^calibration: expected one text or more, got an empty list; give texts"),
        ({}, {}, r"^calibration: expected one source or more, got an empty mapping"),
        ({"wiki": WIKI, "none": []}, {}, r"^calibration\['none'\]: expected one text or more, got an empty list"),
        ("one string", {}, r"^calibration: expected a list of texts, .* got one string; give one"),
        (3, {}, r"^calibration: expected a list of texts, .* got int; give one"),
        (["a", None], {}, r"^source 'texts': expected texts as strings, got NoneType at position 1; convert it"),
        (WIKI, {"search": ["a", 2.0]}, r"^source 'texts': expected texts as strings, got float at position 1"),
        (
            ["one long text"],
            {},
            r"^calibration: expected texts in 'texts' of which a quarter can .* got 1 of 13 characters in all; give",
        ),
        (
            [" ", "\n"],
            {"search": WIKI},
            r"^data, calibration, source 'texts': expected documents with text in 2 texts in memory, got only blank ones",
        ),
        (
            texts(0, 40, 5),
            {},
            r"source 'texts', part \[0, 0.75\): .* at least 4 windows of 128 tokens, got 1 .*; give about 6\d\d tokens .* texts of its own",
        ),
        (texts(0, 40), {}, r"at least 4 windows of 256 tokens, got 0 .*; give about 7,9\d\d tokens .* or give the search texts of its own"),
        (torch.zeros(4, 6), {}, r"^calibration: expected whole numbers \[n, seq_len\], got torch.float32 \[4, 6\]; give the ids of tokens"),
        (torch.zeros(4, dtype=torch.long), {}, r"^calibration: expected whole numbers \[n, seq_len\], got torch.int64 \[4\]"),
        ({"input_ids": [[1, 2], [3]]}, {}, r"^calibration.input_ids: expected token ids \[n, seq_len\], got rows of several lengths"),
        (torch.ones(1, 4, dtype=torch.long), {}, r"^calibration: expected 2 windows or more, one to hold out for the search, got 1"),
        ({"input_ids": torch.ones(4, 6).long(), "labels": torch.ones(4, 5).long()}, {}, r"expected ids, labels and mask \[n, seq_len\]"),
        (WIKI, {"search": WIKI}, "expected calibration and search to share no document"),
        (MANY, {"evaluation": MANY[:60]}, "expected .* and evaluation 'texts' to share no document"),
    ],
)
def test_what_cannot_be_used_is_one_line(tokenizer: Any, given: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        data_from_texts(given, tokenizer, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 1}, "^data.calibration.seq_len: expected a whole number >= 2, got 1"),
        (
            {"search_samples": 1, "samples_per_source": 0},
            r"\(1\) data.calibration.samples_per_source: .* >= 1, got 0.*\(2\) data.search.samples: .* >= 2, got 1",
        ),
        ({"seed": -1}, "^data.seed: expected a whole number from 0 to 2.*, got -1"),
        ({"tokenizer": None}, "^tokenizer: expected a tokenizer for the texts, got none"),
    ],
)
def test_numbers_and_the_tokenizer_are_checked_first(tokenizer: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        data_from_texts({"wiki": WIKI, "code": CODE}, **{"tokenizer": tokenizer, **options})


def test_documents_longer_than_a_window_and_blank_ones_are_fine(tokenizer: Any) -> None:
    long = texts(5, 12, 900)
    data = data_from_texts([*long, "", "  "], tokenizer, search=WIKI, **SMALL)
    assert tuple(data.calibration_windows.input_ids.shape) == (6, 16)
    assert data.card is not None
    assert [row["sources"] for row in data.card["sets"]] == [["texts: 14 texts in memory"], ["texts: 120 texts in memory"]]


def test_few_long_texts_are_cut_like_text_files(tokenizer: Any, tmp_path: Path) -> None:
    long = "\n\n".join(texts(0, 600))
    (tmp_path / "long.txt").write_text(long)
    module = PruningDataModule(
        CalibrationData([TextSource("book", path=str(tmp_path / "long.txt"), part=[0.0, 0.75])], 6, 16),
        SearchData([TextSource("book", path=str(tmp_path / "long.txt"), part=[0.75, 1.0])], 7, 24),
    )
    module.tokenizer_object = tokenizer
    module.setup()
    assert same(data_from_texts({"book": [long]}, tokenizer, **SMALL), module)


def test_a_long_text_that_is_cut_is_still_known_in_the_evaluation(tokenizer: Any) -> None:
    long = "\n\n".join(texts(0, 600))
    with pytest.raises(DataError, match=r"calibration and evaluation 'texts' to share no document, got 1 in both"):
        data_from_texts([long], tokenizer, evaluation=[f"{long}\n"], **SMALL)
    with (
        written_as({"data": "calibration"}),
        pytest.raises(DataError, match=r"^calibration: .*; leave them out of one of the two$"),
    ):
        data_from_texts([long], tokenizer, evaluation=[long], **SMALL)


def test_looking_at_texts_does_not_use_them_up() -> None:
    found, held = iter(texts(0, 10)), iter(texts(10, 10))
    check_forms(found, evaluation={"wiki": held})
    assert len(list(found)) == len(list(held)) == 10


def test_a_source_too_short_for_the_search_is_left_out_of_it(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_from_texts({"few": texts(9, 30), "wiki": texts(0, 400)}, tokenizer, seq_len=64, search_seq_len=512)
    assert data.calibration_windows.source_names == ["few", "wiki"]
    assert data.search_windows.source_names == ["wiki"]
    assert "search 'few' none of 32 windows" in capsys.readouterr().out


def test_one_set_alone(tokenizer: Any) -> None:
    trained = windows_from_texts({"wiki": WIKI, "train": TRAIN}, tokenizer, seq_len=32, seed=3)
    drawer = WindowDrawer(tokenizer, 3)
    sources = [TextSource("wiki", texts=WIKI), TextSource("train", texts=TRAIN)]
    assert trained.fingerprint == drawer.evenly("recovery", sources, 32, None).fingerprint
    assert windows_from_texts(torch.arange(12).view(2, 6), None).input_ids.tolist() == torch.arange(12).view(2, 6).tolist()
    measured = evaluation_from_texts({"wiki": WIKI, "held": HELD}, tokenizer, windows=(16, 32))
    assert list(measured) == [("wiki", 16), ("wiki", 32), ("held", 16), ("held", 32)]
    whole = joined_windows([Document("held", "", text) for text in HELD], tokenizer, 32, bos=BosRule.of(tokenizer))
    assert measured["held", 32].fingerprint == whole.fingerprint
    assert list(evaluation_from_texts(torch.ones(2, 6, dtype=torch.long), None)) == [("texts", 6)]
    with pytest.raises(DataError, match=r"^texts: expected a list of texts, .* got NoneType; give one"):
        windows_from_texts(None, tokenizer)
    with pytest.raises(ConfigurationError, match=r"^tokenizer: expected a tokenizer for the texts, got none"):
        evaluation_from_texts(HELD, None)
    with pytest.raises(ConfigurationError, match="window: expected a whole number >= 2, got 1"):
        evaluation_from_texts(HELD, tokenizer, windows=[1])


def test_windows_are_a_kind_of_source_for_the_data_module(tokenizer: Any) -> None:
    windows = windows_from_texts(WIKI, tokenizer, seq_len=16)
    source = TextSource("made", kind="windows", options={"windows": windows})
    assert WindowDrawer(tokenizer, 0).each("calibration", [source], 16, 3).fingerprint == windows.fingerprint
    with pytest.raises(DataError, match=r"source 'made': expected token windows, got list; give TextWindows"):
        TextSource("made", kind="windows", options={"windows": [[1, 2]]}).reader.check()
    with pytest.raises(DataError, match=r"source 'made': expected no documents or part with windows"):
        TextSource("made", kind="windows", options={"windows": windows}, documents=3).reader.check()


def test_texts_beside_windows_for_the_refit_are_cut_to_their_length(tokenizer: Any) -> None:
    windows = torch.arange(4, 4 + 6 * 16).view(6, 16) % 90
    texts = [f"w{n} w{n + 1} w{n + 2} w{n + 3} " * 40 for n in range(8)]
    others = [f"w{n} w{n + 1} w{n + 2} w{n + 3} " * 40 for n in range(40, 48)]
    data = data_from_texts(texts, tokenizer, seq_len=24, search_seq_len=24, reconstruction={"ids": windows, "words": others})
    assert data.refitted_on.input_ids.shape[1] == 16
    assert data.calibration_windows.input_ids.shape[1] == 24
