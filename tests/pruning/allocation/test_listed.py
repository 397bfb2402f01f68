"""Explicit fractions are taken exactly, or refused with what would be right."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import Allocation, allocate
from adapruner.pruning.budget import Budget
from tests.conftest import build_model
from tests.pruning.allocation.test_allocation import draw_scores

STRUCTURE = trace_structure(build_model("llama", intermediate_size=160))
SCORES = draw_scores(STRUCTURE)


def fraction_of(attention: list[float], ffn: list[float]) -> float:
    removed = sum(
        round(f * g.units) * g.parameters_per_unit
        for layer in range(3)
        for g, f in ((STRUCTURE.group(layer, "attention"), attention[layer]), (STRUCTURE.group(layer, "ffn"), ffn[layer]))
    )
    return removed / STRUCTURE.block_parameters


def test_every_layer_loses_what_its_list_says() -> None:
    attention, ffn = [0.0, 0.25, 0.5], [0.1, 0.4, 0.65]
    kept = allocate(SCORES, STRUCTURE, Budget(fraction_of(attention, ffn)), Allocation("list", attention=attention, ffn=ffn))
    assert [len(kept[f"{layer}.attention"]) for layer in range(3)] == [4, 3, 2]
    assert [len(kept[f"{layer}.ffn"]) for layer in range(3)] == [144, 96, 56]
    for g in STRUCTURE.groups:
        assert kept[g.name] == sorted(torch.argsort(SCORES[g.name])[g.units - len(kept[g.name]) :].tolist())


def test_a_missing_list_removes_nothing() -> None:
    ffn = [0.3, 0.3, 0.3]
    kept = allocate(SCORES, STRUCTURE, Budget(fraction_of([0.0] * 3, ffn)), Allocation("list", ffn=ffn))
    assert [len(kept[f"{layer}.attention"]) for layer in range(3)] == [4, 4, 4]
    assert [len(kept[f"{layer}.ffn"]) for layer in range(3)] == [112, 112, 112]


def test_a_list_off_the_budget_is_refused_with_the_fraction_that_works() -> None:
    attention, ffn = [0.25] * 3, [0.2, 0.3, 0.4]
    allocation = Allocation("list", attention=attention, ffn=ffn)
    with pytest.raises(BudgetError, match=r"expected what the lists remove, 0\.\d{6} of block parameters, got 0\.5; give") as caught:
        allocate(SCORES, STRUCTURE, Budget(0.5), allocation)
    remedy = float(re.findall(r"give pruned_fraction (0\.\d+)", str(caught.value))[0])
    assert remedy == pytest.approx(fraction_of(attention, ffn), abs=1e-6)
    assert allocate(SCORES, STRUCTURE, Budget(remedy), allocation)


@pytest.mark.parametrize(
    ("budget", "lists", "message"),
    [
        (Budget(0.2), {"ffn": [0.2, 0.2]}, r"allocation\.ffn: expected 3 fractions, one for each layer, got 2"),
        (Budget(0.2, protect_last=1), {"ffn": [0.2, 0.2, 0.2]}, r"allocation\.ffn: expected at most 0\.0 in layer 2, got 0\.2"),
        (Budget(0.2), {"attention": [0.0, 1.0, 0.0]}, r"allocation\.attention: expected at most 0\.75 in layer 1, got 1\.0"),
    ],
)
def test_lists_that_do_not_fit_the_model(budget: Budget, lists: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        allocate(SCORES, STRUCTURE, budget, Allocation("list", **lists))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "list"}, r"expected 'list' exactly when attention or ffn lists fractions, got 'list' with neither"),
        ({"ffn": [0.2]}, r"expected 'list' exactly when attention or ffn lists fractions, got 'gamma' with ffn"),
        ({"method": "list", "ffn": [0.2, 1.2]}, r"allocation\.ffn: expected fractions in \[0, 1\], got 1\.2"),
        ({"method": "list", "ffn": [0.2], "round_to": 8}, r"expected neither round_to nor uniform heads with method 'list'"),
        ({"method": "list", "ffn": [0.2], "heads": "uniform"}, r"expected neither round_to nor uniform heads with method 'list'"),
    ],
)
def test_lists_that_contradict_other_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Allocation(**arguments)
