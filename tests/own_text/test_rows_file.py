"""The file of rows: whole rows only, gone on with after a kill at any moment, another's left alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adapruner.errors import ConfigurationError
from adapruner.files import atomic
from adapruner.own_text.rows_file import RowsFile

IDENTITY = {"model": "m", "tokenizer": "t", "seed": 0, "tokens": 8}
#: Batches of three, blank documents left out; with what JSON has to escape.
BATCHES = [['a"\n', "b\u2028", "c"], ["d"], [], ["e\x00", "f", "\N{GRINNING FACE}"], ["h", "i", "j"]]


class Killed(BaseException):
    """What nothing catches."""


def write(file: Path, documents: int, identity: dict[str, Any] = IDENTITY) -> bytes:
    """The whole, from where it is."""
    rows = RowsFile(file)
    with rows.held():
        rows.read(identity, documents)
        number = rows.state.batches
        while rows.rows < documents:
            rows.put(identity, number, BATCHES[number], documents)
            number += 1
    return file.read_bytes()


def texts_of(content: bytes) -> list[str]:
    return [json.loads(line)["text"] for line in content.split(b"\n")[:-1]]


def test_rows_are_the_texts(tmp_path: Path) -> None:
    content = write(tmp_path / "new" / "own.jsonl", 9)
    assert texts_of(content) == [text for batch in BATCHES for text in batch][:9]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [".own.jsonl.adapruner.json", "own.jsonl"]
    assert write(tmp_path / "new" / "own.jsonl", 9) == content


@pytest.mark.parametrize("moment", range(16))
def test_a_kill_at_any_moment(tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each of the two files is begun, and before it is moved into place, of the first four batches."""
    expected = write(tmp_path / "unbroken.jsonl", 8)
    file, left = tmp_path / "own.jsonl", [moment]

    def count() -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1

    write_bytes, move = Path.write_bytes, Path.replace

    def counted_write(self: Path, content: bytes) -> int:
        count()
        return write_bytes(self, content)

    def counted_move(self: Path, target: Path) -> Path:
        count()
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", counted_write)
        patch.setattr(Path, "replace", counted_move)
        with pytest.raises(Killed, match=r"^$"):
            write(file, 8)
    there = file.read_bytes() if file.exists() else b""
    assert there == b"".join(expected.splitlines(keepends=True)[: there.count(b"\n")])
    assert write(file, 8) == expected


def test_what_a_killed_one_was_writing_is_cleared(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", 3)
    left = tmp_path / ".adapruner-999999999-own.jsonl.tmp"
    left.write_text('{"te')
    (tmp_path / ".adapruner-999999999-other.jsonl.tmp").write_text("another's")
    write(tmp_path / "own.jsonl", 4)
    assert not left.exists()
    assert (tmp_path / ".adapruner-999999999-other.jsonl.tmp").exists()


@pytest.mark.parametrize("first", range(1, 10))
def test_more_documents_go_on(tmp_path: Path, first: int) -> None:
    write(tmp_path / "own.jsonl", first)
    assert write(tmp_path / "own.jsonl", 10) == write(tmp_path / "unbroken.jsonl", 10)


def test_a_batch_within_a_batch_is_not_lost(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", 2)
    rows = RowsFile(tmp_path / "own.jsonl")
    rows.read(IDENTITY, 2)
    assert (rows.rows, rows.state.batches) == (2, 0)
    rows.read(IDENTITY, 5)
    assert rows.rows == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"^seed: expected 0 as in .*own\.jsonl, got 1; give that, or choose another --out$"),
        ({"tokens": 9}, r"^tokens: expected 8 as in .*own\.jsonl, got 9; "),
        ({"model": "other"}, r"^model: expected the one that began .*own\.jsonl, got another; give that, or choose another --out$"),
        ({"tokenizer": "other"}, r"^tokenizer: expected the one that began"),
    ],
)
def test_another_seed_or_model_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tmp_path / "own.jsonl"
    content = write(file, 5)
    with pytest.raises(ConfigurationError, match=said):
        write(file, 9, {**IDENTITY, **change})
    assert file.read_bytes() == content


def test_fewer_documents_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", 5)
    with pytest.raises(
        ConfigurationError, match=r"documents: expected 5 or more, which .*own\.jsonl has, got 4; give more, or choose another"
    ):
        write(tmp_path / "own.jsonl", 4)


def foreign(file: Path) -> None:
    file.write_text('{"text": "mine"}\n')


def changed(file: Path) -> None:
    write(file, 3)
    file.write_bytes(file.read_bytes() + b'{"text": "mine"}\n')


def shortened(file: Path) -> None:
    write(file, 8)
    file.write_bytes(file.read_bytes()[:-5])


def record_cut(file: Path) -> None:
    write(file, 3)
    record = RowsFile(file).record
    record.write_text(record.read_text()[:-9])


def record_changed(file: Path) -> None:
    write(file, 3)
    record = RowsFile(file).record
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (foreign, r"out: expected a new file, or one that write-texts began, got .*own\.jsonl; choose another name"),
        (changed, r"out: expected .*own\.jsonl as write-texts left it, got other content; choose another name"),
        (shortened, r"out: expected .*own\.jsonl as write-texts left it, got other content"),
        (record_cut, r"out: expected the record of .*own\.jsonl in \.own\.jsonl\.adapruner\.json, got damage \("),
        (record_changed, r"out: expected the record of .* got damage \(its digest is of other content\); choose another name"),
    ],
)
def test_what_somebody_else_wrote_is_left_alone(tmp_path: Path, spoil: Any, said: str) -> None:
    file = tmp_path / "own.jsonl"
    spoil(file)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match=said):
        write(file, 9)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    content = write(tmp_path / "own.jsonl", 5)
    (tmp_path / "own.jsonl").rename(tmp_path / "first.jsonl")
    assert write(tmp_path / "own.jsonl", 5, {**IDENTITY, "seed": 1}) == content  # whose batches these are, nobody asks here


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    one, other = RowsFile(tmp_path / "own.jsonl"), RowsFile(tmp_path / "own.jsonl")
    said = r"out: expected no other process at work on .*own\.jsonl, got one; wait for it, end it, or choose another name"
    with one.held():
        with pytest.raises(ConfigurationError, match=said), other.held():
            pass
        with RowsFile(tmp_path / "another.jsonl").held():  # beside it there is room
            pass
    with other.held():
        pass


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own.txt", r"out: expected a file name that ends with \.jsonl, got 'own\.txt'; give own\.jsonl"),
        ("folder.jsonl", r"out: expected a file, got a folder, .*folder\.jsonl; choose another name"),
        ("link.jsonl", "out: expected a file, got a link that leads nowhere"),
        ("file/own.jsonl", "out: expected a folder, got a file, .*file, in the way of"),
        ("x" * 300 + ".jsonl", "out: expected a path that a file system takes, got one of"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=said):
        RowsFile(tmp_path / name)


def test_a_refusal_leaves_no_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a: expected b"), RowsFile(tmp_path / "new" / "own.jsonl").held():
        raise ConfigurationError("a: expected b, got c; d")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write(tmp_path / "own.jsonl", 4)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_free", lambda _: 10)
        with pytest.raises(ConfigurationError, match=re.escape("out: expected 0.0 MiB of room for")):
            write(tmp_path / "own.jsonl", 9)
    assert (tmp_path / "own.jsonl").read_bytes() == content
    assert write(tmp_path / "own.jsonl", 9) == write(tmp_path / "unbroken.jsonl", 9)
