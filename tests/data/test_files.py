from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from adapruner.data.documents import Document
from adapruner.data.files import PIECE_CHARACTERS, read_text_pieces
from adapruner.data.text_source import TextSource, read_documents
from adapruner.errors import DataError

from .written import ROWS, TEXTS, texts, write, write_rows

_WHOLE = gzip.compress(b"".join(f"word {i * 7919 % 10007} ".encode() for i in range(9999)), mtime=0)


FLIPPED = _WHOLE[:600] + bytes([_WHOLE[600] ^ 0xFF]) + _WHOLE[601:]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"])
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


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = {"txt": "one", "jsonl": '{"text": "one"}', "json": '[{"text": "one"}]', "csv": "text\none\n"}[name.split(".")[1]]
    assert texts(path=str(write(tmp_path / name, "\ufeff" + content))) == ["one"]


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_missing_column_names_the_columns_there_are(tmp_path: Path, name: str) -> None:
    path = str(write_rows(tmp_path / name, ROWS))
    with pytest.raises(DataError, match=r"expected a column 'body' in 'a\.\w+', got the columns text, label"):
        texts(path=path, column="body")
    with pytest.raises(DataError, match="expected a column 'instruction'"):
        texts(path=path, instruction=True)
    if name == "a.csv":  # which has no numbers
        assert texts(path=path, column="label") == [str(row["label"]) for row in ROWS]
        return
    with pytest.raises(DataError, match="expected text in column 'label', got int in row 0"):
        texts(path=path, column="label")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz"])
def test_the_text_of_a_table_keeps_its_quotes_separators_and_line_breaks(tmp_path: Path, name: str) -> None:
    documents = ['said "no", twice', "one\ttab", "two\n\nlines\r\nand more", "long " * 40_000]
    assert texts(path=str(write_rows(tmp_path / name, [{"id": str(i), "text": text} for i, text in enumerate(documents)]))) == documents


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2; mend it"),
        ("a.jsonl", b"3\n", "got int in row 1"),
        ("a.json", b'{"text": "x"}\n{"text": "y"\n', "expected one JSON object a line, got .* in 'a.json' line 2; mend it"),
        ("a.json", b'"x"', "expected rows that are JSON objects, got str in row 1 of 'a.json'"),
        ("a.txt", b"\xff\xfe\x00", "expected a readable UTF-8"),
        ("a.txt.gz", b"no gzip", "expected a readable UTF-8"),
        ("a.txt.gz", gzip.compress(b"word " * 999, mtime=0)[:-9], "expected a readable UTF-8"),
        ("a.parquet", b"no parquet", "expected a readable UTF-8 or parquet"),
        ("a.txt", b" \n\n ", "expected documents with text"),
        ("a.csv", b"id,text\n1,one\n2,two,three\n", r"expected 2 columns in every row, .* got 3 in line 3; put quotes around"),
        ("a.csv", b"id,text\n1\n", r"expected 2 columns in every row, .* got 1 in line 2; put quotes around"),
        (
            "a.csv",
            b'text\n"one\ntwo\n',
            r"expected a table .*, got 'unexpected end of data' in 'a\.csv' after line 1",
        ),
        ("a.csv", b"text\n", "expected documents with text"),
        ("a.csv", b"text,text\nA,B\n", r"expected columns with names of their own, got 'text' twice in 'a\.csv'; rename one"),
        ("a.csv", b"", "expected documents with text"),
        ("a.csv.gz", FLIPPED, r"expected a readable UTF-8 .* in 'a\.csv\.gz'"),
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
