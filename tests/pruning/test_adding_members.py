"""An allocation, a unit of cost and a score of layers in a user's own file, named on the command line like the shipped ones."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from adapruner.errors import BudgetError, ConfigurationError
from adapruner.models.tracing import trace_structure
from adapruner.pruning.allocation import ALLOCATIONS, Allocation, allocate
from adapruner.pruning.budget import Budget
from adapruner.pruning.costs import COSTS
from adapruner.pruning.costs.sizes import measure_sizes
from adapruner.pruning.depth_and_width import DepthWidthConfig, choose_depth_and_width, remaining_budget
from adapruner.pruning.layer_scores import LAYER_SCORES
from tests.conftest import build_model, build_windows
from tests.pruning.allocation.test_allocation import draw_scores

OWN = """
import torch

from adapruner.pruning.allocation import AllocationMethod, register_allocation
from adapruner.pruning.costs import CostModel, Counted, register_cost
from adapruner.pruning.layer_scores import register_layer_score


@register_allocation
class LastFirst(AllocationMethod):
    name = "last_first"

    def keep(self, inputs):
        counts, left = {}, inputs.costs.remove
        for group in reversed(inputs.groups):
            counts[group.name] = min(inputs.most[group.name], int(left / inputs.costs.per_unit[group.name]))
            left -= counts[group.name] * inputs.costs.per_unit[group.name]
        return inputs.keep_highest(counts)


@register_cost
class Energy(CostModel):
    name, words, needs_length = "energy", "mJ per token", True

    def count(self, inputs):
        per_unit = {g.name: 0.001 * g.parameters_per_unit * inputs.seq_len for g in inputs.structure.groups}
        return Counted(per_unit, 2.0 + sum(g.units * per_unit[g.name] for g in inputs.structure.groups))


@register_layer_score
class MiddleFirst:
    name = "middle_first"

    def score(self, model, windows, *, batch_size=8, progress=None):
        layers = model.config.num_hidden_layers
        return (torch.arange(layers, dtype=torch.float64) - (layers - 1) / 2).abs()
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "own.py").write_text(OWN)
    runpy.run_path(str(tmp_path / "own.py"))
    yield
    ALLOCATIONS.remove("last_first")
    COSTS.remove("energy")
    LAYER_SCORES.remove("middle_first")


def parsed(kind: type, *arguments: str) -> Any:
    """As the command line makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    return parser.instantiate_classes(parser.parse_args(list(arguments))).it


def test_an_own_allocation_under_a_budget_of_an_own_cost(own: None) -> None:
    structure = trace_structure(build_model("llama", intermediate_size=160))
    budget = parsed(Budget, "--it.of=energy", "--it.pruned_fraction=0.4", "--it.seq_len=16", "--it.protect_last=1")
    allocation = parsed(Allocation, "--it.method=last_first")
    costs = budget.costs(structure)
    whole = 2.0 + 0.016 * structure.block_parameters
    assert (costs.whole, costs.remove) == (pytest.approx(whole), pytest.approx(0.4 * whole))
    kept = allocate(draw_scores(structure), structure, budget, allocation, costs)
    assert costs.removed_by(kept, structure) == pytest.approx(0.4 * whole, abs=max(costs.per_unit["0.ffn"], costs.slack))
    lost = [sum(g.units - len(kept[g.name]) for g in structure.of_layer(layer)) for layer in range(3)]
    assert lost[2] == 0  # protected
    assert lost[1] == (4 - 1) + (160 - 8)  # all that may go
    assert lost[0] > 0
    assert budget.to_dict() == {"pruned_fraction": 0.4, "of": "energy", "seq_len": 16}
    with pytest.raises(BudgetError, match=r"expected at most 0\.\d+ of mJ per token for this model, got 0\.99"):
        Budget(0.99, "energy", seq_len=16).costs(structure)


def test_what_an_own_member_does_not_use_is_refused(own: None) -> None:
    with pytest.raises(ConfigurationError, match=r"allocation\.depth_slope: expected 0 with method 'last_first', got 0\.2"):
        Allocation("last_first", depth_slope=0.2)
    with pytest.raises(ConfigurationError, match="expected neither round_to nor uniform heads with method 'last_first', got one"):
        Allocation("last_first", round_to=8)
    model = build_model("llama")
    structure = trace_structure(model)
    with pytest.raises(
        ConfigurationError, match=r"budget\.of: expected a unit with an absolute target beside removed layers .*, got 'energy'"
    ):
        remaining_budget(Budget(0.3, "energy"), structure, structure, measure_sizes(model, structure))


def test_an_own_score_of_layers(own: None) -> None:
    model = build_model("llama", num_hidden_layers=5)
    config = parsed(DepthWidthConfig, "--it.remove_layers=2", "--it.layer_score=middle_first")
    assert choose_depth_and_width(model, build_windows(), config, Budget(0.3)).removed_layers == (1, 2)
    assert choose_depth_and_width(model, build_windows(), config, Budget(0.3, protect_first=2)).removed_layers == (2, 3)


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (Allocation, "method", r"allocation\.method: expected a known allocation, got 'gama'; did you mean 'gamma'\?"),
        (Budget, "of", r"budget\.of: expected a known unit of cost, got 'gama'; .*Known: all, block, latency, macs, memory"),
        (DepthWidthConfig, "layer_score", r"layer_score: expected a known layer score, got 'gama'; Known: block_influence"),
    ],
)
def test_an_unknown_name_is_one_line(kind: type, option: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        parsed(kind, f"--it.{option}=gama")


def test_scores_in_equal_parts_are_ranked_by_place() -> None:
    """What :class:`AllocationInputs` gives to an allocation: stable, so that the same scores give the same units."""
    structure = trace_structure(build_model("llama", intermediate_size=160))
    equal = {g.name: torch.ones(g.units) for g in structure.groups}
    kept = allocate(equal, structure, Budget(0.5), Allocation("uniform"))
    assert kept["0.attention"] == [2, 3]
