from __future__ import annotations

from pathlib import Path

import pytest

from adapruner.data.prompts import prompt_loader, read_prompts
from adapruner.errors import DataError


def test_a_prompt_a_line_or_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first \n\n  second\n")
    assert read_prompts(tmp_path / "a.txt") == ["first ", "  second"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "two\\nlines", "id": 3}\n{"prompt": "é"}\n')
    assert read_prompts(tmp_path / "a.jsonl") == ["two\nlines", "é"]
    assert list(prompt_loader(["a", "b"])) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", r"data.prompts: expected one prompt or more, got none in 'a.txt'"),
        ("a.txt", b"\xff\xfe", r"data.prompts: expected readable UTF-8 text"),
        ("a.jsonl", b'{"text": "x"}\n', r"data.prompts: expected the key 'prompt' with text in every row, got None in row 1"),
        ("a.jsonl", b'{"prompt": 3}\n', r"got 3 in row 1 of 'a.jsonl'"),
        ("a.jsonl", b'{"prompt": \n', r"expected one JSON object a line"),
    ],
)
def test_what_holds_no_prompts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.prompts: expected a file, got"):
        read_prompts(tmp_path / "none.txt")
