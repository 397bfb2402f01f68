"""Shares of sources: whole windows in the proportions that are asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapruner.data.draw_windows import apportion
from adapruner.data.sets import SearchData
from adapruner.data.text_source import TextSource
from adapruner.errors import ConfigurationError


@given(st.integers(8, 500), st.lists(st.floats(0.01, 100.0), min_size=1, max_size=8))
def test_every_share_is_met_to_a_window_or_is_the_one_that_each_source_has(count: int, shares: list[float]) -> None:
    found = apportion(count, shares)
    assert sum(found) == count
    assert min(found) >= 1
    exact = [count * share / sum(shares) for share in shares]
    below = sum(max(0.0, 1 - value) for value in exact)  # what the smallest get more than their share is taken from the largest
    assert all(abs(got - value) <= 1 + below for got, value in zip(found, exact, strict=True))


@given(st.integers(0, 500), st.integers(1, 9))
def test_equal_shares_are_an_even_division(count: int, sources: int) -> None:
    if count >= sources:
        share, rest = divmod(count, sources)
        assert apportion(count, [1.0] * sources) == [share + (number < rest) for number in range(sources)]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"cod": 2.0}, r"data\.search\.shares: expected names of sources, got 'cod'; did you mean 'code'"),
        ({"code": 0.0}, r"data\.search\.shares: expected positive numbers, got 0\.0 for 'code'"),
    ],
)
def test_shares_that_mean_nothing_are_refused(shares: dict[str, float], message: str) -> None:
    sources: Any = [TextSource("code", texts=["a"]), TextSource("mail", texts=["b"])]
    with pytest.raises(ConfigurationError, match=message):
        SearchData(sources, shares=shares)
