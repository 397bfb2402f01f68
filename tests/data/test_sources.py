from __future__ import annotations

import gzip
import importlib.util
import json
import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from adapruner.data.card import sources_in_words
from adapruner.data.documents import Document, draw_documents
from adapruner.data.files import PIECE_CHARACTERS, read_text_pieces
from adapruner.data.text_source import SOURCE_KINDS, TextSource, read_documents
from adapruner.demo.corpus import load_demo_corpus
from adapruner.errors import ConfigurationError, DataError

ROWS = [{"text": f"row {i}", "label": i} for i in range(5)] + [{"text": "", "label": 5}]
TEXTS = [row["text"] for row in ROWS]
_WHOLE = gzip.compress(b"".join(f"word {i * 7919 % 10007} ".encode() for i in range(9999)), mtime=0)
FLIPPED = _WHOLE[:600] + bytes([_WHOLE[600] ^ 0xFF]) + _WHOLE[601:]


def write(path: Path, content: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    as_lines = ".jsonl" in path.name
    return write(path, "\n".join(map(json.dumps, rows)) + "\n\n" if as_lines else json.dumps(rows))


def texts(**options: Any) -> list[str]:
    return [d.text for d in read_documents(TextSource("own", **options))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"])
def test_every_row_format_gives_the_same_documents_blank_rows_included(tmp_path: Path, name: str) -> None:
    documents = list(read_documents(TextSource("own", path=str(write_rows(tmp_path / name, ROWS)))))
    assert [d.text for d in documents] == TEXTS
    assert documents[3] == Document("own", f"{name}#3", "row 3")


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz"])
def test_a_text_file_is_cut_at_blank_lines_and_joins_to_itself(tmp_path: Path, name: str) -> None:
    content = "\n\n".join(f"paragraph {i} " + "word " * (i % 90) + "end" for i in range(120))
    pieces = texts(path=str(write(tmp_path / name, content)))
    assert "\n\n".join(pieces) == content
    assert len(pieces) > 5
    assert all(PIECE_CHARACTERS - 1 <= len(piece) < PIECE_CHARACTERS + 600 for piece in pieces[:-1])


def test_a_text_without_blank_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    content = "\n".join(f"sentence number {i}" for i in range(1000))
    pieces = list(read_text_pieces(write(tmp_path / "ptb.txt", content)))
    assert "\n".join(pieces) == content
    assert max(map(len, pieces)) < 2 * PIECE_CHARACTERS + 30


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


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.txt.gz", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = {"txt": "one", "jsonl": '{"text": "one"}', "json": '[{"text": "one"}]'}[name.split(".")[1]]
    assert texts(path=str(write(tmp_path / name, "\ufeff" + content))) == ["one"]


def test_disjoint_parts_of_one_file_cover_it(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i}"} for i in range(400)]
    path = str(write_rows(tmp_path / "a.jsonl", rows))
    parts = [texts(path=path, part=[low, high]) for low, high in [(0, 0.25), (0.25, 0.6), (0.6, 1)]]
    assert sorted(text for part in parts for text in part) == sorted(row["text"] for row in rows)
    assert [len(part) / 400 for part in parts] == pytest.approx([0.25, 0.35, 0.4], abs=0.08)


def test_equal_texts_fall_in_the_same_part(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", [{"text": "the same"}] * 9))
    assert texts(path=path, part=[0, 0.5] if Document("", "", "the same").position < 0.5 else [0.5, 1]) == ["the same"] * 9


def test_limit_counts_after_the_part_and_reads_no_further(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"text number {i}"} for i in range(50)])
    with path.open("a") as out:
        out.write("not json\n")
    part = [0.0, 0.5]
    first = list(islice(read_documents(TextSource("own", path=str(path), part=part)), 4))
    assert [d.text for d in first] == texts(path=str(path), part=part, documents=4)
    assert all(d.position < 0.5 for d in first)


def test_instruction_rows_become_prompt_and_text(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Greet {me}.", "input": None, "output": "Hi"}]
    source = TextSource("alpaca", path=str(write_rows(tmp_path / "a.json", rows)), instruction=True)
    with_input, without = read_documents(source)
    assert with_input.text.endswith("### Input:\n1 2\n\n### Response:\n3")
    assert without.text == without.prompt + "Hi"
    assert "### Input" not in without.text
    assert "Greet {me}." in without.prompt


def test_demo_documents_are_those_of_the_corpus() -> None:
    expected = load_demo_corpus("search", "networkx")
    documents = list(read_documents(TextSource("graphs", demo="networkx", split="search")))
    assert [(d.source, d.name, d.text) for d in documents] == [("graphs", f"networkx/{e.name}", e.text) for e in expected]
    everything = list(read_documents(TextSource("all", demo="all", split="search")))
    assert len(everything) == len(load_demo_corpus("search"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_options_reach_datasets_and_streams_are_read_lazily(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    import datasets

    read: list[int] = []

    def rows() -> Any:
        for i in range(1000):
            read.append(i)
            yield {"text": f"row {i}"}

    def load(*arguments: Any, **options: Any) -> Any:
        assert arguments == ("me/set", "raw")
        assert options == {"split": "validation", "revision": "v1", "streaming": streaming}
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = TextSource("hub", hub="me/set", config="raw", split="validation", revision="v1", streaming=streaming, documents=3)
    assert [d.text for d in read_documents(source)] == ["row 0", "row 1", "row 2"]
    assert len(read) <= 4


def test_a_real_data_set_folder_streams_through_datasets(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.parquet", ROWS)
    assert texts(hub=str(tmp_path), streaming=True) == TEXTS


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach 'me/set' on the Hub\nwith a long story")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match=r"source 'own': expected the hub data set 'me/set', got: Couldn't reach .* on the Hub; check"
    ) as caught:
        texts(hub="me/set")
    assert "long story" not in str(caught.value)


def test_a_loading_script_is_answered_with_the_parquet_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Dataset scripts are no longer supported, but found bookcorpus.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="add revision: refs/convert/parquet"):
        texts(hub="bookcorpus")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected exactly one of hub, path, demo, texts and kind, got none"),
        ({"path": "a", "hub": "b"}, "expected exactly one of hub, path, demo, texts and kind, got hub and path"),
        ({"texts": ["a"], "split": "test"}, "expected no split with texts, got 'test'; leave it out and choose documents with part"),
        ({"path": "a", "streaming": True}, "expected no streaming with path"),
        ({"demo": "all", "column": "body"}, "expected no column with demo"),
        ({"demo": "all", "instruction": True}, "expected no instruction with demo"),
        ({"path": "a", "instruction": True, "column": "body"}, "expected no column with instruction"),
        ({"texts": ["a"], "column": "body"}, "expected no column with texts, got 'body'; leave it out"),
        ({"texts": ["a"], "options": {"n": 1}}, "expected options that texts has, got 'n'; leave it out"),
        ({"kind": "texts"}, "expected the field texts, got kind 'texts'; give texts instead"),
        ({"path": "a", "documents": 0}, "expected documents >= 1 or null, got 0"),
        ({"path": "a", "part": [0.5, 0.5]}, r"0 <= low < high <= 1, got \[0.5, 0.5\]"),
        ({"path": "a", "part": [0.0]}, "expected part"),
    ],
)
def test_contradictions_are_refused_when_the_source_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextSource("own", **options)


def test_texts_in_memory_are_documents_named_by_their_position() -> None:
    documents = list(read_documents(TextSource("own", texts=["one", "", "two"])))
    assert documents == [Document("own", "texts#0", "one"), Document("own", "texts#1", ""), Document("own", "texts#2", "two")]
    with pytest.raises(DataError, match=r"source 'own': expected texts as strings, got int at position 1; convert it"):
        read_documents(TextSource("own", texts=["one", 2]))  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"expected documents with text in 1 texts in memory, got only blank ones"):
        list(read_documents(TextSource("own", texts=[" "])))


PAGE = Path(__file__).parents[2] / "docs" / "add-a-data-source.md"


@pytest.fixture
def tickets(tmp_path: Path) -> Iterator[Path]:
    """The kind of source that the page adds, from a user's own file, and a database for it."""
    code = textwrap.dedent(PAGE.read_text().split("```python\n")[1].split("```")[0])
    spec = importlib.util.spec_from_file_location("sqlite_source", write(tmp_path / "sqlite_source.py", code))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    with closing(sqlite3.connect(tmp_path / "tickets.db")) as database:
        database.execute("create table tickets (body text)")
        database.executemany("insert into tickets values (?)", [(text,) for text in TEXTS])
        database.commit()
    yield tmp_path / "tickets.db"
    SOURCE_KINDS.remove("sqlite")


def test_a_kind_of_ones_own_is_read_like_any_other(tickets: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sources", type=list[TextSource])
    given = {"name": "tickets", "kind": "sqlite", "options": {"file": str(tickets), "query": "select body from tickets"}, "documents": 2}
    parsed = parser.parse_args([f"--sources={json.dumps([given])}"])
    source = parser.instantiate(parsed).sources[0]
    assert source == TextSource(**given)
    assert list(read_documents(source)) == [Document("tickets", f"row {i}", text) for i, text in enumerate(TEXTS[:2])]
    assert sources_in_words([source]) == [f"tickets: sqlite, file {tickets}, query select body from tickets, first 2 documents"]
    with pytest.raises(DataError, match=r"source 'tickets': expected no column with sqlite, got 'body'"):
        TextSource("tickets", kind="sqlite", column="body")
    with pytest.raises(DataError, match=r"expected options that sqlite has, got 'flie'; did you mean 'file'"):
        TextSource("tickets", kind="sqlite", options={"flie": 3})
    with pytest.raises(ConfigurationError, match=r"source 'x', kind: expected a known kind of data source, got 'sqlit'; did you mean"):
        TextSource("x", kind="sqlit")


def test_demo_names_are_checked_at_once() -> None:
    with pytest.raises(DataError, match="expected a demo source, got 'nunpy'; did you mean 'numpy'"):
        read_documents(TextSource("own", demo="nunpy", split="search"))
    with pytest.raises(DataError, match="expected a demo split, got 'serach'; did you mean 'search'"):
        read_documents(TextSource("own", demo="numpy", split="serach"))


def test_files_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which does not exist"):
        read_documents(TextSource("own", path=str(tmp_path / "none.txt")))
    with pytest.raises(DataError, match=r"expected one of .txt, .*, got 'a.docx'"):
        read_documents(TextSource("own", path=str(write(tmp_path / "a.docx", "x"))))
    with pytest.raises(DataError, match="expected no split with a file, got 'test'; leave it out and choose documents with part"):
        read_documents(TextSource("own", path=str(write(tmp_path / "b.txt", "x")), split="test"))
    (tmp_path / "b.txt").unlink()
    with pytest.raises(DataError, match="got none of them in"):
        read_documents(TextSource("own", path=str(tmp_path)))
    with pytest.raises(DataError, match=r"expected files with columns for instruction, got 'a.txt'"):
        read_documents(TextSource("own", path=str(write(tmp_path / "a.txt", "x")), instruction=True))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_missing_column_names_the_columns_there_are(tmp_path: Path, name: str) -> None:
    path = str(write_rows(tmp_path / name, ROWS))
    with pytest.raises(DataError, match=r"expected a column 'body' in 'a\.\w+', got the columns text, label"):
        texts(path=path, column="body")
    with pytest.raises(DataError, match="expected a column 'instruction'"):
        texts(path=path, instruction=True)
    with pytest.raises(DataError, match="expected text in column 'label', got int in row 0"):
        texts(path=path, column="label")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2; mend it"),
        ("a.jsonl", b"3\n", "got int in row 1"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}\n', "name it .jsonl if it has one object a line"),
        ("a.json", b'{"text": "x"}', "expected a JSON array of objects, got dict"),
        ("a.txt", b"\xff\xfe\x00", "expected a readable UTF-8"),
        ("a.txt.gz", b"no gzip", "expected a readable UTF-8"),
        ("a.txt.gz", gzip.compress(b"word " * 999, mtime=0)[:-9], "expected a readable UTF-8"),
        ("a.parquet", b"no parquet", "expected a readable UTF-8 or parquet"),
        ("a.txt", b" \n\n ", "expected documents with text"),
        ("a.jsonl", b'{"text": " "}', "got only blank ones"),
        ("a.txt.gz", FLIPPED, r"expected a readable UTF-8 .* in 'a\.txt\.gz'"),
        ("a.jsonl.gz", FLIPPED, r"expected a readable UTF-8 .* in 'a\.jsonl\.gz'"),
        ("a.json.gz", FLIPPED, r"expected a readable UTF-8 .* in 'a\.json\.gz'"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "half \\ud83d"}\n',
            r"row 1 of 'a\.jsonl': expected whole characters, got the lone surrogate '\\ud83d'",
        ),
        ("a.json", b'[{"text": "half \\ud83d"}]', r"row 0 of 'a\.json': expected whole characters"),
        ("a.jsonl", b"\n" + b"[" * 100_000, r"maximum recursion depth .* in 'a\.jsonl' line 2; mend it"),
        ("a.json", b"[" * 100_000, r"maximum recursion depth .* in 'a\.json'; mend it"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"1" * 5000 + b"}", r"Exceeds the limit \(4300 digits\) .* in 'a\.jsonl' line 1; mend it"),
        ("a.json", b'[{"text": "x", "n": ' + b"1" * 5000 + b"}]", r"Exceeds the limit \(4300 digits\) .* in 'a\.json'; mend it"),
    ],
)
def test_damaged_and_empty_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(path=str(tmp_path / name))


def test_hash_is_the_start_of_sha256() -> None:
    assert Document("s", "n", "abc").hash == "ba7816bf8f01cfea"
    assert 0 <= Document("s", "n", "abc").position < 1
    assert Document("s", "n", "lone surrogate \ud800").hash != Document("s", "n", "lone surrogate \ud801").hash


def test_a_short_source_is_drawn_whole_without_blanks() -> None:
    documents = [Document("s", str(i), "word " * i) for i in range(6)]
    assert draw_documents(documents, 1000, 0) == documents[1:]


def test_a_long_source_gives_an_ordered_sample_from_all_over() -> None:
    documents = [Document("s", str(i), f"{i:010d}") for i in range(2000)]
    counts = [0] * 4
    for seed in range(20):
        drawn = [int(d.name) for d in draw_documents(documents, 1000, seed)]
        assert len(drawn) == 100
        assert drawn == sorted(drawn)
        for name in drawn:
            counts[name // 500] += 1
    assert counts == pytest.approx([500] * 4, rel=0.15)
    assert draw_documents(documents, 1000, 3) == draw_documents(iter(documents), 1000, 3) != draw_documents(documents, 1000, 4)
