"""Costs refuse what would divide by zero, and show amounts in the words of the option."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adapruner.errors import ConfigurationError
from adapruner.pruning.costs import UnitCosts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_unit": {"0.ffn": 0.0}}, r"costs: expected a positive number for 0\.ffn, got 0\.0"),
        ({"per_unit": {"0.ffn": math.nan}}, r"costs: expected a positive number for 0\.ffn, got nan"),
        ({"whole": 0.0}, r"costs: expected a positive number for the whole, got 0\.0"),
    ],
)
def test_costs_that_are_not_positive_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        UnitCosts(**{"per_unit": {"0.ffn": 1.0}, "whole": 10.0, "remove": 1.0, "what": "things", "dense": 12.0, **changes})


def test_amounts_are_shown_as_they_were_asked() -> None:
    fraction = UnitCosts({}, 10.0, 2.0, "block parameters", 100.0)
    assert fraction.fraction == 0.2
    assert fraction.slack == 0.01
    assert fraction.shown(2.5) == "0.2500"
    assert UnitCosts({}, 10.0, 2.0, "block parameters", 7e9, "budget.parameters_left", 7e9 - 2).shown(3.0) == "6999999997"
    assert UnitCosts({}, 10.0, 2.0, "ms per forward", 10.0, "budget.latency_ms", 8.0).shown(1.5) == "8.5"
