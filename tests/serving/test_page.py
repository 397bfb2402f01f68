"""The page says what the record of the last conformance run says."""

from __future__ import annotations

from . import cases
from .results import Row, load
from .write_table import PAGE, forms, written


def test_the_tables_are_those_of_the_record() -> None:
    page, record = PAGE.read_text(encoding="utf-8"), load()
    assert written(page, record) == page
    assert forms(record) in page


def test_every_family_and_form_was_run() -> None:
    rows = [Row.read(row) for row in load()["rows"]]
    assert {(row.family, row.form) for row in rows if row.equal == row.tokens} == {(a, b) for a in cases.FAMILIES for b in cases.FORMS}


def test_a_row_counts_tokens_in_their_places() -> None:
    expected, name = [[1, 2, 3], [4, 5, 6]], ("Llama", "uniform", "vllm")
    assert Row.of(*name, expected, {"tokens": expected, "class": "X"}) == Row("Llama", "uniform", "vllm", 6, 6, "X", "")
    assert Row.of(*name, expected, {"tokens": [[1, 3, 2], [4, 5]]}).equal == 3
    assert Row.of(*name, expected, {"error": "OSError: no"}) == Row("Llama", "uniform", "vllm", 6, 0, "", "OSError: no")
