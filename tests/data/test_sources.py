from __future__ import annotations

import importlib.util
import json
import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from adapruner.data.card import sources_in_words
from adapruner.data.documents import Document
from adapruner.data.text_source import SOURCE_KINDS, TextSource, read_documents
from adapruner.demo.corpus import load_demo_corpus
from adapruner.errors import ConfigurationError, DataError

from .written import ROWS, TEXTS, texts, write, write_rows


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
    monkeypatch.setattr("adapruner.data.sources.hub.hub_fault", lambda *_: None)
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
    monkeypatch.setattr("adapruner.data.sources.hub.hub_fault", lambda *_: None)
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
    monkeypatch.setattr("adapruner.data.sources.hub.hub_fault", lambda *_: None)
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
