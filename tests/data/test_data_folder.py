from __future__ import annotations

from pathlib import Path

import pytest

from adapruner.data.text_source import TextSource, read_documents
from adapruner.errors import DataError

from .written import texts, write, write_rows


def test_a_folder_gives_its_readable_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.md", "first")
    write(tmp_path / "sub" / "c.txt", "third")
    write(tmp_path / "code.py", "unread")
    write(tmp_path / ".hidden" / "d.txt", "unread")
    documents = list(read_documents(TextSource("own", path=str(tmp_path))))
    assert [(d.name, d.text) for d in documents] == [("a.md#0", "first"), ("b.txt#0", "second"), ("sub/c.txt#0", "third")]


def test_a_json_that_is_no_text_is_left_out_beside_others_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.txt", "first")
    write(tmp_path / "b.json", '{\n "text": "second",\n "id": 3\n}')
    write(tmp_path / "c.json", '{"text": "third"}\n{"text": "fourth"}\n')
    write(tmp_path / "package.json", '{"name": "mine", "version": "1.0"}')
    assert texts(path=str(tmp_path)) == ["first", "second", "third", "fourth"]
    assert "reads a.txt, b.json, c.json in " in (said := capsys.readouterr().out)
    assert "; left out: package.json" in said
    with pytest.raises(DataError, match=r"expected a column 'text' in 'package.json', got the columns name, version"):
        texts(path=str(tmp_path / "package.json"))  # what is named is not left out in silence
    for name in ("a.txt", "b.json", "c.json"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"expected a column 'text' in 'package.json'"):
        texts(path=str(tmp_path))
    write(tmp_path / "b.json", '{"text": "whole"}')
    write(tmp_path / "torn.json", '{"text": "half')
    with pytest.raises(DataError, match=r"expected a JSON array, got .* in 'torn.json' line 1; mend it"):
        texts(path=str(tmp_path))


CLONED = (
    "README.md",
    "LICENSE.txt",
    "dataset_infos.json",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
)


FOLDERS: list[tuple[tuple[str, ...], str, tuple[str, ...] | str]] = [  # files, split, those that are read or the refusal
    (CLONED, "train", CLONED[3:5]),
    (CLONED, "test", CLONED[5:]),
    (CLONED, "validation", r"expected files of the split 'validation' in .*, got the splits test, train; name one of them"),
    (("train.txt", "dev.txt", "notes.txt"), "train", ("train.txt",)),
    (("train.txt", "dev.txt", "notes.txt"), "validation", ("dev.txt",)),
    (("wiki.test.txt", "a.txt", "contest.txt"), "train", ("a.txt", "contest.txt")),
    (("test-00000-of-00001.jsonl", "README.md"), "train", ("test-00000-of-00001.jsonl",)),
    (("train/a.txt", "valid/b.txt"), "dev", ("valid/b.txt",)),
    (("train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl"), "train_sft", ("train_sft-00000-of-00001.jsonl",)),
    (("train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl"), "train", r"got the splits test_sft, train_sft; name one"),
    (("The test of time.txt", "Train to Pakistan.txt"), "train", ("The test of time.txt", "Train to Pakistan.txt")),
    (("a.txt",), "test", r"got names that tell no split; leave split out"),
    (("README.md", "LICENSE.md"), "train", r"got only LICENSE\.md; put text there"),
]


@pytest.mark.parametrize(("files", "split", "expected"), FOLDERS)
def test_of_a_folder_one_split_is_read_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: tuple[str, ...], split: str, expected: tuple[str, ...] | str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = [{"text": name}]
        _ = write(tmp_path / name, name) if name.endswith((".txt", ".md")) else write_rows(tmp_path / name, rows)
    source = TextSource("own", path=str(tmp_path), split=split)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_documents(source)
        return
    assert [document.text for document in read_documents(source)] == sorted(expected)
    said = capsys.readouterr().out
    assert said.startswith(f"adapruner: source 'own': reads {sorted(expected)[0]}")
    assert ("left out: " in said) == (len(expected) < len(files))


def test_a_folder_of_save_to_disk_is_read_by_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(3)]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "all"))
    parts["test"].save_to_disk(str(tmp_path / "one"))
    assert texts(path=str(tmp_path / "all")) == [f"train {i}" for i in range(3)]
    assert "reads the split train of" in (said := capsys.readouterr().out)
    assert "left out: test" in said
    assert texts(path=str(tmp_path / "all"), split="test") == texts(path=str(tmp_path / "one")) == [f"test {i}" for i in range(3)]
    with pytest.raises(DataError, match=r"source 'own': expected the split 'dev' in .*, got train, test; name one of them"):
        texts(path=str(tmp_path / "all"), split="dev")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"source 'own': expected a folder of save_to_disk, got .*; write it again"):
        texts(path=str(tmp_path / "one"))
