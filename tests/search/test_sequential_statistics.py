"""Wanda-sp layer by layer, as its published code prunes: against a loop that runs the whole model anew for every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import adapruner
from adapruner import stages
from adapruner.errors import ConfigurationError
from adapruner.pruning.allocation import Allocation
from adapruner.pruning.recipe import Recipe
from adapruner.pruning.surgery import cut_layer
from tests.tiny import VOCABULARY, tiny_llama

RECIPE = Recipe({"wanda_sp": 1.0}, allocation=Allocation("uniform", round_to=1), sequential=True)


def windows(samples: int = 12) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (samples, 10), generator=torch.Generator().manual_seed(2))


def slow_plan(model: Any, structure: Any, ids: torch.Tensor, counts: dict[str, int], plan: Any) -> dict[str, list[int]]:
    """Cuts the model for good, a layer at a time; the inputs of each come from a forward pass of the model as it is by then."""
    kept = {}
    for layer in range(structure.layers):
        for group in structure.of_layer(layer):
            projection, box = model.get_submodule(group.output.module), []
            handle = projection.register_forward_pre_hook(lambda _, arguments, box=box: box.append(arguments[0]))
            with torch.no_grad():
                model(ids)
            handle.remove()
            norms = box[0].flatten(0, 1).square().sum(0).sqrt()
            scores = projection.weight.detach().abs().sum(0) * norms
            units = torch.stack([part.sum() for part in scores.split(group.channels_per_unit)])
            kept[group.name] = sorted(units.topk(counts[group.name]).indices.tolist())
        now = replace(plan, kept={**plan.kept, **kept})
        cut_layer(model, structure, now, layer)
    return kept


def test_it_is_the_loop_over_layers() -> None:
    model, ids = tiny_llama(), windows()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scored = stages.score(model, calibration=ids, budget=0.5, recipe=RECIPE, reconstruction=None)
    found = stages.search(scored)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # dense again
    counts = {name: len(units) for name, units in found.plan.kept.items()}
    expected = slow_plan(tiny_llama(), scored.structure, ids[:9], counts, found.plan)
    assert found.plan.kept == expected
    dense = stages.search(stages.score(model, calibration=ids, budget=0.5, recipe=replace(RECIPE, sequential=False), reconstruction=None))
    assert dense.plan.kept != expected  # it makes a difference
    assert dense.plan.kept["0.attention"] == expected["0.attention"]  # nothing is pruned before the first layer


@pytest.mark.parametrize(
    ("metric", "method", "got"), [("wanda_sp", "gamma", "'gamma' and wanda_sp"), ("taylor_first", "uniform", "'uniform' and taylor_first")]
)
def test_what_cannot_be_scored_layer_by_layer(metric: str, method: str, got: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"recipe\.sequential: expected the allocation 'uniform' and .*, got {got}; take"):
        adapruner.Recipe({metric: 1.0}, allocation=Allocation(method), sequential=True)
