from __future__ import annotations

import pytest

from adapruner.data.leaks import check_disjoint
from adapruner.errors import DataError


def test_one_shared_long_document_is_a_leak() -> None:
    with pytest.raises(DataError, match=r"expected recovery and test to share no document, got 1 in both; .* allow_leak"):
        check_disjoint({"calibration": {"a"}, "recovery": {"b", "c", "d"}}, {"test": {"d", "e", "f"}}, short={"e"})


def test_repeated_headings_are_none_but_the_same_short_rows_are() -> None:
    short = {"h1", "h2", "h3", "h4"}
    seen = {"calibration": {"h1", "a", "b"}}
    check_disjoint(seen, {"test": {"h1", "c", "d"}}, short)
    with pytest.raises(DataError, match="got 2 in both"):
        check_disjoint({"calibration": {"h1", "h2", "h3"}}, {"test": {"h2", "h3", "h4", "x", "y"}}, short)


def test_disjoint_sets_pass_and_a_set_is_not_held_against_itself() -> None:
    assert check_disjoint({"search": {"a"}, "calibration": {"b"}}, {"search": {"a"}, "test": {"c"}, "empty": set()}) is None
